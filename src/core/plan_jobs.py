"""The jobs of a study as the cost model sees them: what each should take, what it leaves on the disk, what it waits for.

Called by `plan`; the rules take the same seconds for their time limits. One job here is one job of the workflow, its path is
that of the output that the rule declares. Jobs without a GPU (manifest, tables, figures, report) are counted, not timed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from . import cost, lvvit_size, segment_plan, segment_size
from .errors import ConfigError
from .placement import processes_of
from .planned import RESULTS, AnnotatorJob, LabelJob, Run, Table, Training
from .published import PublishedJob
from .segment_plan import SegmentationRun, SegmentationTable
from .study import Study

STAGES = ("label", "train", "finetune", "segment", "evaluate")  # of jobs that hold GPUs, in the order of a study
GUESSED_GMACS = 10.0  # of a network whose size nothing says
GUESSED_WIDTH = 384  # channels of a backbone whose settings say nothing: those of DeiT-S and LV-ViT-S


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        path: of its output.
        stage: one of STAGES, or "other" where it holds no GPU.
        kind: stage and annotator or model; what jobs of it took corrects the others of it.
        seconds: estimate, with all its GPUs.
        gpus: that it holds.
        after: paths of the jobs that it waits for.
        benchmark: path of the file with what it took; None for one leg of several, and where the run says it.
        run: folder name and seed of the run that it is (a part of).
        parts: of how many jobs that run consists.
        label_bytes, weights_bytes: what it leaves.
        checkpoint_bytes: what lies there while it runs.
        guessed: whether the size of its network is a guess.
    """

    path: str
    stage: str
    kind: str
    seconds: float = 0.0
    gpus: int = 0
    after: tuple[str, ...] = ()
    benchmark: str | None = None
    run: tuple[str, int] | None = None
    parts: int = 1
    label_bytes: float = 0.0
    weights_bytes: float = 0.0
    checkpoint_bytes: float = 0.0
    guessed: bool = False


def rates_of(study: Study) -> cost.Rates:
    """What the GPU of `plan.gpu` achieves."""
    settings = study.config.plan
    gpu = settings.gpu_types[settings.gpu]
    return cost.Rates(
        train_tflops=gpu.peak_tflops * gpu.train_share,
        infer_tflops=gpu.peak_tflops * gpu.infer_share,
        job_start_s=settings.job_start_s,
    )


def gmacs_of(study: Study, run: Training) -> float | None:
    """10^9 multiply-adds of one photograph through a run's network; None where neither settings nor catalogue say."""
    settings = run.spec["model"]["settings"]
    if lvvit_size.has_size(settings):
        return lvvit_size.count_multiply_adds(settings, run.spec["image_px"], study.config.dataset.num_classes)
    model = study.model_of(run)
    return model.gmacs and cost.multiply_adds_at(model.gmacs, model.image_px, run.spec["image_px"])


def gmacs_at(study: Study, architecture: str, image_px: int) -> float | None:
    """10^9 multiply-adds of a published network at a resolution, as the catalogue has it; None where it has not."""
    model = next((model for model in study.config.models.values() if model.architecture == architecture), None)
    if model is None:
        return None
    settings = model.settings.model_dump()
    if lvvit_size.has_size(settings):
        return lvvit_size.count_multiply_adds(settings, image_px, study.config.dataset.num_classes)
    return model.gmacs and cost.multiply_adds_at(model.gmacs, model.image_px, image_px)


def parameters_m_of(study: Study, run: Training) -> float:
    """10^6 parameters of a run's network, a segmenter's head among them; 0 where neither settings nor catalogue say."""
    settings, segmenter = run.spec["model"]["settings"], isinstance(run, SegmentationRun)
    classes = 0 if segmenter else study.config.dataset.num_classes
    if lvvit_size.has_size(settings):
        own = lvvit_size.count_parameters(settings, run.spec["image_px"], classes)
    else:
        own = study.model_of(run).parameters_m or 0.0
    if not segmenter:
        return own
    width = settings.get("width", GUESSED_WIDTH)
    return own + segment_size.head_parameters(run.spec["head"], width, run.spec["dataset"]["num_classes"])


def shard_seconds(study: Study, labels: LabelJob, split: str = "train") -> float:
    """What one shard of labels should take."""
    settings = study.config.labels
    views = (2 if settings.flip else 1) * sum(scale**2 for scale in settings.scales)
    images = _images(study, split) / labels.shards
    return _infer_seconds(study, labels.annotator, images * views)


def adapt_seconds(study: Study, annotator: str) -> float:
    """What an adaptation should take: one pass over all photographs, the heads are fitted in no time beside it."""
    return _infer_seconds(study, annotator, study.train_images + study.config.dataset.val_images)


def annotator_evaluation_seconds(study: Study, annotator: str) -> float:
    """What measuring an annotator alone should take."""
    return _infer_seconds(study, annotator, study.config.dataset.val_images)


def fidelity_seconds(study: Study, annotator: str) -> float:
    """What the comparison of labels with their annotator should take."""
    sample = study.config.fidelity
    return _infer_seconds(study, annotator, sample.images * sample.crops)


def evaluation_seconds(study: Study, run: Run) -> float:
    """What an evaluation of a run should take; one more pass where its tokens are compared with an annotator's maps."""
    again = 0 if study.reference is None else study.config.dataset.val_images
    return _evaluation_seconds(study, gmacs_of(study, run), again)


def published_seconds(study: Study, job: PublishedJob) -> float:
    """What the evaluation of a published checkpoint should take."""
    return _evaluation_seconds(study, gmacs_at(study, job.entry.architecture, job.entry.image_px))


def _evaluation_seconds(study: Study, gmacs: float | None, more_images: int = 0) -> float:
    """Of the validation split and all further test sets whose size the configuration knows."""
    config, rates = study.config, rates_of(study)
    images = config.dataset.val_images + sum(config.test_sets[name].images or 0 for name in config.evaluation.test_sets)
    return rates.job_start_s + rates.infer_seconds(images + more_images, gmacs or GUESSED_GMACS)


def segmenter_gmacs(study: Study, run: SegmentationRun, side_px: int, *, training: bool) -> float:
    """10^9 multiply-adds of a square of so many pixels through a segmenter: the backbone without classes, and the head.

    Args:
        study: of the run.
        run: whose segmenter.
        side_px: of the square.
        training: with the auxiliary head.
    """
    settings, model = run.spec["model"]["settings"], study.model_of(run)
    if lvvit_size.has_size(settings):
        backbone = lvvit_size.count_multiply_adds(settings, side_px, 0)
    else:
        backbone = cost.multiply_adds_at(model.gmacs or GUESSED_GMACS, model.image_px, side_px)
    tokens = (side_px / math.prod(settings.get("stem_strides", (16,)))) ** 2
    classes = run.spec["dataset"]["num_classes"]
    width = settings.get("width", GUESSED_WIDTH)
    return backbone + segment_size.head_multiply_adds(run.spec["head"], width, tokens, classes, training=training)


def segmentation_evaluation_seconds(study: Study, run: SegmentationRun) -> float:
    """What testing a segmenter should take, single and multi-scale: windows times scales times flips."""
    rates, scenes = rates_of(study), study.config.segmentation.dataset
    testing = segment_plan.evaluation_spec(study.config)
    gmacs = segmenter_gmacs(study, run, testing["window_px"], training=False)
    passes = scenes.val_images * segment_size.count_passes(scenes.image_size, testing)
    return rates.job_start_s + rates.infer_seconds(passes, gmacs)


def _segmentation_seconds(study: Study, run: SegmentationRun, intervals: float) -> float:
    """What so many intervals of a training for segmentation should take on all its GPUs, validations in one scale included."""
    machine, rates, recipe = study.config.machine, rates_of(study), run.spec["recipe"]
    photographs = intervals * recipe["interval_iterations"] * recipe["batch_size"]
    work = rates.train_seconds(photographs, segmenter_gmacs(study, run, recipe["crop_px"], training=True))
    if machine.validate_every_epochs:
        scenes, testing = study.config.segmentation.dataset, segment_plan.evaluation_spec(study.config)
        windows = segment_size.count_windows(*scenes.image_size, testing, 1.0)
        gmacs = segmenter_gmacs(study, run, testing["window_px"], training=False)
        work += rates.infer_seconds(intervals / machine.validate_every_epochs * scenes.val_images * windows, gmacs)
    return rates.job_start_s + work / processes_of(machine, run)


def run_seconds(study: Study, run: Training, epochs: float | None = None) -> float:
    """What so many epochs of a run should take on all its GPUs, validations included.

    Args:
        study: of the run.
        run: a training or fine-tuning, or one for segmentation.
        epochs: None: all of it.
    """
    machine, rates = study.config.machine, rates_of(study)
    epochs = run.epochs if epochs is None else epochs
    if isinstance(run, SegmentationRun):
        return _segmentation_seconds(study, run, epochs)
    gmacs = gmacs_of(study, run) or GUESSED_GMACS
    every = machine.validate_every_epochs
    validated = epochs / every * study.config.dataset.val_images if every else 0.0
    work = rates.train_seconds(epochs * study.train_images, gmacs) + rates.infer_seconds(validated, gmacs)
    return rates.job_start_s + work / processes_of(machine, run)


def legs_of(study: Study, run: Training) -> int:
    """How many jobs in a row a run is: by machine.leg_epochs, or so that each fits into machine.max_job_hours."""
    machine = study.config.machine
    if machine.leg_epochs is not None or machine.max_job_hours is None:
        return run.legs(machine.leg_epochs)
    start_s = rates_of(study).job_start_s
    epoch_s = run_seconds(study, run, 1) - start_s
    return run.legs(cost.epochs_within(machine.max_job_hours, start_s, epoch_s))


@dataclass
class JobList:
    """Collects jobs with everything that they wait for; each path once.

    Attributes:
        study: whose jobs.
        jobs: path -> job.
    """

    study: Study
    jobs: dict[str, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        machine = self.study.config.machine
        self._check_gpus(machine.processes * machine.nodes, "machine.processes" + " x nodes" * (machine.nodes > 1))

    def add_labels(self, labels: LabelJob, split: str = "train") -> list[str]:
        """All shards of an annotator; returns their paths."""
        paths = labels.markers_of(split)
        if paths[0] in self.jobs:
            return paths
        config = self.study.config
        entry = config.annotators[labels.annotator]
        section = labels.spec["labels"]
        of_map = cost.map_bytes(
            entry.grid[0] * entry.grid[1], section["k"], entry.num_classes, tail=section["tail"],
            storage=config.machine.label_storage,
        )  # fmt: skip
        before = [self._add_adapted(labels.adapted)] if labels.adapted else [self._add_manifest()]
        for path in paths:
            self._add(
                path, "label", labels.annotator, shard_seconds(self.study, labels, split), before,
                label_bytes=of_map * _images(self.study, split) / labels.shards,
            )  # fmt: skip
        return paths

    def add_fidelity(self, labels: LabelJob) -> str:
        """The comparison of an annotator's labels with itself."""
        seconds = fidelity_seconds(self.study, labels.annotator)
        return self._add(self.study.fidelity_of(labels), "evaluate", labels.annotator, seconds, self.add_labels(labels))

    def add_table(self, table: Table) -> str:
        """An experiment's table with its evaluations and trainings."""
        before = []
        for row in table.rows:
            for seed in table.seeds:
                if isinstance(row.run, Run):
                    before.append(self._add_evaluation(row.run, seed))
                else:
                    before.append(self._add_annotator_evaluation(row.run))
        return self.add_other(table.csv, before)

    def add_segmentation(self, table: SegmentationTable) -> str:
        """An experiment's table of segmentation with its evaluations, trainings, and those of the backbones."""
        before = []
        for run, seed in table.trainings:
            seconds = segmentation_evaluation_seconds(self.study, run)
            model, guessed = f"{run.name.split('-', 1)[0]} segmenter", gmacs_of(self.study, run) is None
            trained = [self.add_run(run, seed)]
            before.append(self._add(run.result(seed), "evaluate", model, seconds, trained, guessed=guessed))
        return self.add_other(table.csv, before)

    def add_curves(self, table: Table | SegmentationTable) -> list[str]:
        """The figure of an experiment's training curves; none where nothing is trained."""
        runs = [row.run for row in table.rows if isinstance(row.run, Training)]
        before = [self.add_run(run, seed) for run in runs for seed in table.seeds]
        return [self.add_other(path, before) for path in table.curves]

    def add_published(self) -> str:
        """The table of the selected published checkpoints with their evaluations."""
        study = self.study
        before = [
            self._add(
                job.result, "evaluate", f"{job.entry.architecture} published", published_seconds(study, job),
                [self._add_manifest()],
                guessed=gmacs_at(study, job.entry.architecture, job.entry.image_px) is None,
            )
            for _, job in study.published.jobs
        ]  # fmt: skip
        return self.add_other(study.published.csv, before)

    def add_other(self, path: str, before: list[str]) -> str:
        """A job without a GPU."""
        self.jobs.setdefault(path, Job(path=path, stage="other", kind="other", after=tuple(dict.fromkeys(before))))
        return path

    def add_run(self, run: Training, seed: int) -> str:
        """A training with what it starts and learns from, as the legs that it runs in; returns the last one's path."""
        path = run.done(seed)
        if path in self.jobs:
            return path
        study, machine = self.study, self.study.config.machine
        if isinstance(run, SegmentationRun):
            before = [self.add_other(run.scenes.marker, [])]
        else:
            labels = run.labels if isinstance(run, Run) else None
            before = self.add_labels(labels) if labels else [self._add_manifest()]
        if run.start is not None:
            before = [*before, self.add_run(run.start, seed)]
        legs = legs_of(study, run)
        self._check_gpus(processes_of(machine, run), f"machine.processes x nodes_of for {run.name}:")
        parameters_m = parameters_m_of(study, run)
        stage, model = run.spec["stage"], run.name.split("-", 1)[0]
        for leg in range(1, legs + 1):
            last = leg == legs
            epochs = run.leg_end(leg, legs) - run.leg_end(leg - 1, legs)
            marker = path if last else run.leg_done(seed, leg, legs)
            self._add(
                marker, stage, model, run_seconds(study, run, epochs), before, gpus=processes_of(machine, run),
                run=(run.name, seed),
                parts=legs,
                benchmark=None if last else _benchmark(marker),
                guessed=gmacs_of(study, run) is None,
                checkpoint_bytes=cost.checkpoint_bytes(parameters_m),
                weights_bytes=cost.weights_bytes(parameters_m, averaged=run.spec["recipe"]["ema_decay"] is not None)
                if last else 0.0,
            )  # fmt: skip
            before = [marker]
        return path

    def _check_gpus(self, gpus: int, what: str) -> None:
        plan = self.study.config.plan
        if gpus > plan.gpus:
            raise ConfigError(
                f"configuration key plan.gpus: {plan.gpus} is below {what} {gpus}, the GPUs that one training holds. Raise the "
                "one or lower the other."
            )

    def closure(self, paths: list[str]) -> dict[str, Job]:
        """These jobs and everything that they wait for."""
        found: dict[str, Job] = {}
        todo = list(paths)
        while todo:
            path = todo.pop()
            if path not in found:
                found[path] = self.jobs[path]
                todo += self.jobs[path].after
        return found

    def _add(
        self, path: str, stage: str, what: str, seconds: float, before: list[str], *, gpus: int = 1, **more: Any
    ) -> str:
        if path not in self.jobs:
            more.setdefault("benchmark", _benchmark(path))
            self.jobs[path] = Job(
                path=path, stage=stage, kind=f"{stage} {what}", seconds=seconds, gpus=gpus,
                after=tuple(dict.fromkeys(before)), **more,
            )  # fmt: skip
        return path

    def _add_manifest(self) -> str:
        return self.add_other(self.study.data.marker, [])

    def _add_evaluation(self, run: Run, seed: int) -> str:
        before = [self.add_run(run, seed)]
        if self.study.reference is not None:
            before += self.add_labels(self.study.reference, "val")
        model = run.name.split("-", 1)[0]
        return self._add(
            run.result(seed), "evaluate", model, evaluation_seconds(self.study, run), before,
            guessed=gmacs_of(self.study, run) is None,
        )  # fmt: skip

    def _add_adapted(self, job: AnnotatorJob) -> str:
        before = [self._add_manifest()] + ([self.add_run(job.run, 0)] if job.run else [])
        return self._add(
            job.marker, "label", f"{job.annotator} (adapt)", adapt_seconds(self.study, job.annotator), before
        )

    def _add_annotator_evaluation(self, job: AnnotatorJob) -> str:
        before = [self._add_adapted(job) if job.adapted else self._add_manifest()]
        seconds = annotator_evaluation_seconds(self.study, job.annotator)
        return self._add(job.result(0), "evaluate", f"{job.annotator} alone", seconds, before)


def _infer_seconds(study: Study, annotator: str, images: float) -> float:
    gmacs = cost.multiply_adds_at(
        study.config.annotators[annotator].gmacs, cost.ANNOTATOR_PX, study.config.labels.image_px
    )
    rates = rates_of(study)
    return rates.job_start_s + rates.infer_seconds(images, gmacs)


def _images(study: Study, split: str) -> int:
    return study.train_images if split == "train" else study.config.dataset.val_images


def _benchmark(path: str) -> str:
    """Where a rule keeps what a job took: the output's path under benchmarks/."""
    return str(("benchmarks" / PurePosixPath(path).relative_to(RESULTS)).with_suffix(".tsv"))
