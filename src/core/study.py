"""The plan of a study: from a validated configuration to label jobs, runs and tables, each with its spec and path.

Called by rules/common.smk at parse time. Order of resolution: defaults < experiment < row < caps. Equal specs become
one run, whoever asks for them. Nothing here reads a photograph or a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from .config import Annotator, Config, Experiment, Model, Recipe, check_annotator_fits, load_config
from .errors import AnnotatorMisfitError, ConfigError, unknown_name
from .identity import STAGE_VERSIONS, digest_of
from .paper import DATASET
from .placement import check_nodes_of, nodes_of
from .planned import RESULTS, AnnotatorJob, DataJob, LabelJob, Planned, Run, Table, TableRow, Training
from .published import PublishedJob, PublishedTable, plan_published
from .recipes import check_schedule
from .rows import (
    NotApplicable,
    canonical_recipe,
    capped_model,
    capped_recipe,
    check_row_keys,
    expanded_rows,
    known_name,
    other_rows,
    paper_of_row,
    revalidated,
    starting_from,
    with_overrides,
    with_settings,
)
from .segment_config import SegmentExperiment
from .segment_plan import (
    SceneJob,
    SegmentationRun,
    SegmentationTable,
    check_run,
    evaluation_spec,
    machine_section,
    plan_experiment,
)

ANNOTATOR_ALONE = "annotator"  # as a row's model: the annotator itself is measured
ANNOTATOR_CROP = 1.0  # share of the shorter side that it sees then


@dataclass(frozen=True)
class Study:
    """Everything that a configuration asks for."""

    config: Config
    data: DataJob
    labels: dict[str, LabelJob] = field(default_factory=dict)
    annotators: dict[str, AnnotatorJob] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    scenes: dict[str, SceneJob] = field(default_factory=dict)
    segmentations: dict[str, SegmentationRun] = field(default_factory=dict)
    segmentation_tables: dict[str, SegmentationTable] = field(default_factory=dict)
    reference: LabelJob | None = None  # whose maps evaluations compare the tokens' predictions with

    @classmethod
    def plan(cls, raw: Mapping[str, Any]) -> Study:
        """Validates a configuration and resolves every experiment of its catalogue.

        Raises:
            ConfigError: a key or value that is not legal, or names that do not fit together.
        """
        config = load_config(raw)
        check_nodes_of(config)
        study = cls(config=config, data=_data_job(config))
        if config.evaluation.agreement is not None:
            study = replace(study, reference=study._label_job(config.evaluation.agreement))
        for position, annotator in enumerate(config.select.annotators):
            check_annotator_fits(config, annotator, f"select.annotators[{position}]")
            study._label_job(annotator)
        for name, experiment in config.experiments.items():
            selected = name in config.select.experiments
            try:
                study.tables[name] = study._table(name, experiment)
            except (NotApplicable, AnnotatorMisfitError) as reason:  # the catalogue may hold tables of other data sets
                if selected:
                    raise ConfigError(str(reason)) from None
        for name, segmentation in config.segmentation.experiments.items():
            try:
                study._segmentation(name, segmentation)
            except AnnotatorMisfitError as reason:  # backbones of other data sets
                if name in config.select.segmentation:
                    raise ConfigError(str(reason)) from None
        for table in study.selected_segmentations:
            for segmenter, _ in table.trainings:
                check_run(config, segmenter)
        adapted = [job.adapted.run for job in study.used_labels if job.adapted and job.adapted.run]
        for run in (*study.selected_runs, *adapted):
            study._check_schedules(run)
        return study

    def _check_schedules(self, run: Run | None) -> None:
        """Refuses a training, or one that it starts from, that cannot run on this machine's settings."""
        while run is not None:
            recipe = Recipe.model_validate(run.spec["recipe"])
            machine = self.config.machine
            check_schedule(recipe, machine, f"run {run.name}", nodes_of(machine, run))
            run = run.start

    @property
    def selected_tables(self) -> list[Table]:
        """Tables of `select.experiments`, in that order."""
        return [self.tables[name] for name in self.config.select.experiments]

    @property
    def selected_segmentations(self) -> list[SegmentationTable]:
        """Tables of `select.segmentation`, in that order."""
        return [self.segmentation_tables[name] for name in self.config.select.segmentation]

    @property
    def offered_segmentations(self) -> list[SegmentationTable]:
        """The selected ones, and for a study of the paper's photographs all: overlays for others inherit the catalogue."""
        if self.config.dataset.name == DATASET:
            return list(self.segmentation_tables.values())
        return self.selected_segmentations

    @property
    def selected_labels(self) -> list[LabelJob]:
        """Label jobs of `select.annotators`, in that order."""
        return [self._label_job(name) for name in self.config.select.annotators]

    def fidelity_of(self, job: LabelJob) -> str:
        """Path of the comparison of an annotator's labels with the annotator itself."""
        settings = self.config.fidelity.model_dump(mode="json")
        spec = {"stage": "fidelity", "version": STAGE_VERSIONS["fidelity"], **settings}
        return f"{job.folder}/fidelity-{digest_of(spec)}.json"

    def label_job(self, folder_name: str) -> LabelJob:
        """The label job of a folder name under results/labels."""
        if folder_name not in self.labels:
            raise unknown_name("label folder of this configuration", folder_name, self.labels)
        return self.labels[folder_name]

    def annotator_job(self, folder_name: str) -> AnnotatorJob:
        """The annotator of a folder name under results/annotators."""
        if folder_name not in self.annotators:
            raise unknown_name("annotator folder of this configuration", folder_name, self.annotators)
        return self.annotators[folder_name]

    def run(self, folder_name: str) -> Run:
        """The run of a folder name under results/runs."""
        if folder_name not in self.runs:
            raise ConfigError(
                f"results/runs/{folder_name}: no run of this configuration has that name. It may belong to an earlier "
                "one: its spec.json tells which; `snakemake -n all` lists the runs planned now."
            )
        return self.runs[folder_name]

    def segmentation(self, folder_name: str) -> SegmentationRun:
        """The training for segmentation of a folder name under results/segmentation."""
        if folder_name not in self.segmentations:
            raise ConfigError(
                f"results/segmentation/{folder_name}: no run of this configuration has that name. It may belong to an earlier "
                "one: its spec.json tells which."
            )
        return self.segmentations[folder_name]

    def scene_job(self, folder_name: str) -> SceneJob:
        """The manifest of scenes of a folder name under results/scenes."""
        if folder_name not in self.scenes:
            raise unknown_name("manifest of scenes of this configuration", folder_name, self.scenes)
        return self.scenes[folder_name]

    def specs(self) -> dict[str, dict[str, Any]]:
        """Path -> spec of everything planned."""
        planned: list[Planned] = [self.data, *self.annotators.values(), *self.labels.values(), *self.runs.values()]
        planned += [*self.scenes.values(), *self.segmentations.values()]
        return dict(job.document for job in planned)

    @cached_property
    def published(self) -> PublishedTable:
        """The table of the selected published checkpoints."""
        return plan_published(self.config, self.data, self.evaluation_spec)

    def published_job(self, folder_name: str) -> PublishedJob:
        """The published checkpoint of a folder name under results/published."""
        jobs = {job.name: job for _, job in self.published.jobs}
        if folder_name not in jobs:
            raise unknown_name("published checkpoint of this configuration", folder_name, jobs)
        return jobs[folder_name]

    def evaluation_document(self, digest: str) -> tuple[str, dict[str, Any]]:
        """Path and content of the evaluation spec with this digest."""
        crops = {model.eval_crop for model in self.config.models.values()}
        specs = [self.evaluation_spec(crop, self.reference) for crop in crops]
        for spec in (annotator_evaluation(self.config), *specs, evaluation_spec(self.config)):
            if digest_of(spec) == digest:
                return str(RESULTS / "evaluations" / f"{digest}.json"), spec
        raise ConfigError(f"evaluation-{digest}: no evaluation of this configuration has that digest.")

    @property
    def timm_names(self) -> list[str]:
        """timm architectures that the planned jobs build, without weights tags; the first job looks whether they exist."""
        segmenters = [row.run for table in self.selected_segmentations for row in table.rows]
        students = [run.spec["model"]["architecture"] for run in (*self.selected_runs, *segmenters)]
        annotators = [job.spec["annotator"]["architecture"] for job in self.selected_labels]
        names = [name.removeprefix("timm/") for name in students if name.startswith("timm/")] + annotators
        return sorted({name.split(".", 1)[0] for name in names})

    @property
    def selected_runs(self) -> list[Run]:
        """Runs that the selected tables measure, or that their segmenters start from."""
        measured = [row.run for table in self.selected_tables for row in table.rows if isinstance(row.run, Run)]
        started = [row.run.start for table in self.selected_segmentations for row in table.rows]
        return measured + [run for run in started if run is not None]

    @property
    def train_images(self) -> int:
        """Photographs of a training, after the cap."""
        images = self.config.dataset.train_images
        return min(images, self.config.caps.images or images)

    @property
    def used_labels(self) -> list[LabelJob]:
        """Label jobs that the selected tables learn from."""
        return list({run.labels.name: run.labels for run in self.selected_runs if run.labels}.values())

    @property
    def drawn_labels(self) -> list[LabelJob]:
        """Annotators on the page of label maps: at most four that selected tables need anyway."""
        return self.used_labels[:4]

    def model_of(self, run: Training) -> Model:
        """The catalogue's entry of a run's model."""
        return self.config.models[run.name.split("-", 1)[0]]

    def machine(self) -> dict[str, Any]:
        """What jobs may use but no number depends on."""
        dataset = self.config.dataset
        return {
            "data_root": self.config.data_root,
            "weights_root": self.config.weights_root,
            "segmentation_root": self.config.segmentation_root,
            "scenes": machine_section(self.config),
            "timm_names": self.timm_names,
            "real_labels": self.config.evaluation.real_labels and self.config.evaluation.real_labels.file,
            "test_sets": {name: self.config.test_sets[name].path for name in self.config.evaluation.test_sets},
            "dataset": {
                "format": dataset.format,
                "train": dataset.train,
                "val": dataset.val,
                "on_unreadable": dataset.on_unreadable,
                "max_unreadable_fraction": dataset.max_unreadable_fraction,
            },
            **self.config.machine.model_dump(mode="json"),
        }

    def _label_job(self, annotator: str) -> LabelJob:
        entry = self.config.annotators[annotator]
        labels = self.config.labels
        k = entry.num_classes if labels.k == "all" else min(labels.k, entry.num_classes)
        adapted = self._annotator_job(annotator) if annotator in self.config.adapted_annotators else None
        spec = {
            "stage": "annotate",
            "version": STAGE_VERSIONS["annotate"],
            "dataset": self.data.spec,
            "annotator": _annotator_section(entry) | ({"adaptation": adapted.spec} if adapted else {}),
            "labels": {
                "image_px": labels.image_px,
                "view": labels.view,
                "k": k,
                "tail": labels.tail and k < entry.num_classes,  # else nothing is left over
                "precision": labels.precision,
                "score_step": labels.score_step,
                "flip": labels.flip,
                "scales": list(labels.scales),
            },
        }
        name = f"{annotator}-{digest_of(spec)}"
        if name not in self.labels:
            self.labels[name] = LabelJob(
                name=name, annotator=annotator, spec=spec, shards=labels.shards, adapted=adapted
            )
        return self.labels[name]

    def _annotator_job(self, annotator: str) -> AnnotatorJob:
        """Plans an annotator that is adapted, or measured alone."""
        entry, adapted = self.config.annotators[annotator], self.config.adapted_annotators.get(annotator)
        labels = self.config.labels
        run = None
        adaptation: dict[str, Any] | None = None
        if adapted is not None:
            adaptation = {
                "base": _annotator_section(self.config.annotators[adapted.base]),
                "method": adapted.adapt,
                "folds": adapted.folds,
                "run": None,
            }
            if adapted.model is not None and adapted.recipe is not None:
                where = f"annotators.{annotator}"
                model, capped = capped_model(self.config.models[adapted.model], self.config.caps)
                recipe = with_overrides(
                    self.config.recipes[adapted.recipe], {"train.supervision": "hard"}, "train", where
                )
                run = self._run("train", adapted.model, model, recipe, annotator, None, capped, where)
                adaptation["run"] = run.name
        spec = {
            "stage": "adapt",
            "version": STAGE_VERSIONS["adapt"],
            "dataset": self.data.spec,
            "annotator": _annotator_section(entry),
            "adaptation": adaptation,
            "image_px": labels.image_px,
            "view": labels.view,
        }
        name = f"{annotator}-{digest_of(spec)}"
        if name not in self.annotators:
            self.annotators[name] = AnnotatorJob(
                name=name, spec=spec, annotator=annotator, evaluation=digest_of(annotator_evaluation(self.config)),
                adapted=adapted is not None, run=run,
            )  # fmt: skip
        return self.annotators[name]

    def _table(self, name: str, experiment: Experiment) -> Table:
        where = f"experiments.{name}"
        seeds = experiment.seeds[: self.config.caps.seeds]
        rows = []
        for row in expanded_rows(self.config, name, experiment):
            choice = {**self.config.defaults.model_dump(), **experiment.set, **row.set}
            run: Run | AnnotatorJob
            if choice["model"] == ANNOTATOR_ALONE:
                run = self._alone(choice, f"{where}.rows.{row.name}")
            else:
                run = self._run_chain(choice, f"{where}.rows.{row.name}")
            alone = run.annotator if isinstance(run, AnnotatorJob) else None
            used = alone or (run.labels.annotator if run.labels else None)
            annotator = self.config.annotators[used] if used else None
            rows.append(
                TableRow(
                    name=row.name,
                    label=row.label or row.name,
                    differs=row.set,
                    model=choice["model"],
                    run=run,
                    paper=paper_of_row(experiment, row, where),
                    annotator=None
                    if annotator is None
                    else {
                        "name": used,
                        "paper_top1": annotator.paper_top1,
                        "parameters_m": annotator.parameters_m,
                    },
                )
            )
        unknown = set(experiment.paper_top1) - {row.name for row in rows}
        if unknown and not experiment.grid:  # an overlay may shorten a grid without repeating the paper's numbers
            raise unknown_name("row", sorted(unknown)[0], [row.name for row in rows], f"{where}.paper_top1")
        return Table(
            name=name,
            experiment=experiment,
            seeds=seeds,
            rows=tuple(rows),
            dataset=self.config.dataset.name,
            paper_only=other_rows(self.config, experiment, [row.paper for row in rows], where),
        )

    def _segmentation(self, name: str, experiment: SegmentExperiment) -> None:
        """Plans a table of segmentation; a run that another table has too is that one."""
        planned = plan_experiment(self.config, name, experiment, self._run_chain)
        self.scenes[planned.scenes.name] = planned.scenes
        self.segmentations.update((run.name, run) for run, _ in planned.table.trainings)
        self.segmentation_tables[name] = planned.table

    def _alone(self, choice: dict[str, Any], where: str) -> AnnotatorJob:
        """Plans a row that measures its annotator and trains nothing."""
        check_row_keys(choice, where)
        name = known_name("annotator", choice["annotator"], self.config.annotators, f"{where}.annotator")
        check_annotator_fits(self.config, name, f"{where}.annotator")
        return self._annotator_job(name)

    def _run_chain(self, choice: dict[str, Any], where: str) -> Run:
        """Plans the training that a row asks for and the fine-tunings that follow it; returns the last of them."""
        check_row_keys(choice, where)
        config, caps = self.config, self.config.caps
        model_name = known_name("model", choice["model"], config.models, f"{where}.model")
        model, capped = capped_model(with_settings(config.models[model_name], choice, where), caps)
        recipe = with_overrides(
            config.recipes[known_name("recipe", choice["recipe"], config.recipes, f"{where}.recipe")],
            choice,
            "train",
            where,
        )
        run = None
        if choice.get("start") is None:
            run = self._run("train", model_name, model, recipe, choice["annotator"], None, capped, where)
        else:
            model = starting_from(model, choice, where)
        previous_px = model.image_px
        finetune = config.recipes[
            known_name("recipe", choice["finetune_recipe"], config.recipes, f"{where}.finetune_recipe")
        ]
        for image_px in choice["finetune_px"]:
            px = min(image_px, caps.finetune_px or image_px)
            model = revalidated(model, {"image_px": px}, f"{where}.finetune_px")
            if px < previous_px:
                raise ConfigError(
                    f"configuration key {where}.finetune_px: {px} px is below the {previous_px} px before it; "
                    "fine-tuning goes to an equal or higher resolution. Raise it or caps.finetune_px."
                )
            capped = run.capped if run else capped
            if px != image_px:
                capped = (*capped, f"finetune_px {image_px}->{px}")
            recipe = with_overrides(finetune, choice, "finetune", where)
            run = self._run("finetune", model_name, model, recipe, choice["annotator"], run, capped, where)
            previous_px = px
        assert run is not None
        return run

    def _run(
        self,
        stage: str,
        model_name: str,
        model: Model,
        recipe: Recipe,
        annotator: str,
        start: Run | None,
        capped: tuple[str, ...],
        where: str,
    ) -> Run:
        recipe, recipe_caps = capped_recipe(canonical_recipe(recipe), self.config.caps)
        labels = None
        supervision: str = recipe.supervision
        if supervision != "hard":
            if annotator is None:
                raise ConfigError(
                    f"configuration key {where}.annotator: null, but supervision {supervision!r} learns from its labels. "
                    "Name an annotator, or set train.supervision: hard."
                )
            known_name("annotator", annotator, self.config.annotators, f"{where}.annotator")
            check_annotator_fits(self.config, annotator, f"{where}.annotator")
            labels = self._label_job(annotator)
            supervision = f"{supervision}-{annotator}"
            if recipe.label_mass == "exact" and not self.config.labels.tail:
                raise ConfigError(
                    f"configuration key {where}.label_mass: 'exact' needs the stored tail; set labels.tail: true"
                )
        images_cap = self.config.caps.images
        if images_cap is not None and images_cap < self.config.dataset.train_images:
            recipe_caps = (*recipe_caps, f"images {self.config.dataset.train_images}->{images_cap}")
        spec = {
            "stage": stage,
            "version": STAGE_VERSIONS[stage],
            "dataset": self.data.spec,
            "labels": labels.spec if labels else None,
            "model": {
                "architecture": model.architecture,
                "settings": model.settings.model_dump(mode="json", exclude_none=True),
                "stochastic_depth": model.stochastic_depth,
                **_starting_weights(model),
            },
            "image_px": model.image_px,
            "recipe": recipe.model_dump(mode="json"),
            "start": start.name.rsplit("-", 1)[1] if start else None,
        }
        size = f"{model.image_px}px" if stage == "train" else f"to{model.image_px}px"
        if start:
            size = f"{start.spec['image_px']}{size}"
        name = f"{model_name}-{supervision}-{size}-{digest_of(spec)}"
        if name not in self.runs:
            self.runs[name] = Run(
                name=name,
                spec=spec,
                labels=labels,
                start=start,
                evaluation=digest_of(self.evaluation_spec(model.eval_crop, self.reference)),
                capped=tuple(dict.fromkeys((*capped, *recipe_caps))),
            )
        return self.runs[name]

    def evaluation_spec(self, crop: float, reference: LabelJob | None = None) -> dict[str, Any]:
        """What the evaluation of a model with token and class head depends on besides the model.

        Args:
            crop: share of the shorter side.
            reference: whose maps the tokens' predictions are compared with.
        """
        config, spec = self.config, plain_evaluation(self.config, crop)
        if reference:
            spec["agreement"] = reference.name
        real = config.evaluation.real_labels
        if real is not None and real.dataset == config.dataset.name:
            spec["real_labels"] = {"bytes": real.bytes, "sha256": real.sha256}
        if config.evaluation.test_sets:
            chosen = {name: config.test_sets[name] for name in config.evaluation.test_sets}
            spec["test_sets"] = {
                name: {"classes": entry.classes, "images": entry.images} for name, entry in chosen.items()
            }
        return spec


def plain_evaluation(config: Config, crop: float) -> dict[str, Any]:
    """What every evaluation depends on; `crop` is the share of the shorter side."""
    return {
        "stage": "evaluate",
        "version": STAGE_VERSIONS["evaluate"],
        "crop": crop,
        "interpolation": config.evaluation.interpolation,
        "use_ema": config.evaluation.use_ema,
    }


def annotator_evaluation(config: Config) -> dict[str, Any]:
    """The evaluation of an annotator that is measured alone: its accuracy and nothing else."""
    return plain_evaluation(config, ANNOTATOR_CROP)


def _annotator_section(entry: Annotator) -> dict[str, Any]:
    return {
        "architecture": entry.architecture,
        "weights": entry.weights,
        "weights_sha256": entry.weights_sha256,
        "weights_naming": entry.weights_naming,
        "num_classes": entry.num_classes,
        "grid": list(entry.grid),
    }


def _starting_weights(model: Model) -> dict[str, Any]:
    """Where a student's first weights come from; nothing for random ones."""
    if model.weights is None:
        return {}
    return {
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "weights_naming": model.weights_naming,
    }


def _data_job(config: Config) -> DataJob:
    dataset = config.dataset
    spec = {
        "stage": "data",
        "version": STAGE_VERSIONS["data"],
        "name": dataset.name,
        "release": dataset.version,
        "num_classes": dataset.num_classes,
        "class_map": dataset.class_map,
        "val_fraction": dataset.val_fraction,
        "val_seed": dataset.val_seed if dataset.val_fraction else None,
        "near_duplicates": dataset.near_duplicates if dataset.val_fraction else None,
        "images": config.caps.images,
        "shards": config.labels.shards,
    }
    return DataJob(name=f"{dataset.name}-{digest_of(spec)}", spec=spec)
