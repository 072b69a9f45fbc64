"""The plan of segmentation: from rows of `segmentation.experiments` to scene manifests, trainings and tables with spec and path.

Called by `study`, which plans the backbones' runs, so that a run that another table has too is planned once. Order of
resolution as there: defaults < experiment < row < caps. Nothing here reads a photograph, a mask or a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import paper
from .config import Caps, Config
from .errors import ConfigError, unknown_name
from .identity import STAGE_VERSIONS, digest_of
from .paper import PaperScenes
from .planned import RESULTS, ManifestJob, ResultTable, Run, Training
from .recipes import check_shares
from .rows import capped_model, check_row_keys, known_name, revalidated, with_settings
from .segment_config import Head, SegmentExperiment, SegmentRecipe, SegmentRow, Testing

OWN_KEYS = ("head", "backbone", "segment_recipe")
BACKBONES = ("trained", "random", "published")
OF_TRAINED = ("annotator", "recipe", "finetune_recipe", "finetune_px")  # with train.KEY and finetune.KEY


@dataclass(frozen=True)
class SceneJob(ManifestJob):
    """The manifest of the scenes."""

    kind = "scenes"


@dataclass(frozen=True)
class SegmentationRun(Training):
    """One training for segmentation; `start` is the backbone's run, None for random or published weights."""

    kind = "segmentation"

    scenes: SceneJob
    backbone: str

    @property
    def epochs(self) -> int:
        """Intervals of the recipe's interval_iterations steps."""
        return int(self.spec["recipe"]["iterations"] // self.spec["recipe"]["interval_iterations"])

    def overlays(self, seed: int) -> str:
        """Path of the page of overlays that its evaluation leaves."""
        return self.result(seed).replace(".json", ".png")


@dataclass(frozen=True)
class SegmentationRow:
    """One line of a table of segmentation."""

    name: str
    label: str
    differs: dict[str, Any]
    model: str
    head: str
    run: SegmentationRun
    paper: PaperScenes
    against: str | None


@dataclass(frozen=True)
class SegmentationTable(ResultTable):
    """One experiment's result table."""

    name: str
    experiment: SegmentExperiment
    seeds: tuple[int, ...]
    rows: tuple[SegmentationRow, ...]
    dataset: str
    testing: dict[str, Any]
    paper_only: tuple[PaperScenes, ...]

    @property
    def inputs(self) -> list[str]:
        """Evaluations of every row and seed, each once."""
        return list(dict.fromkeys(row.run.result(seed) for row in self.rows for seed in self.seeds))

    @property
    def trainings(self) -> list[tuple[SegmentationRun, int]]:
        """Every run and seed, each once."""
        found = {row.run.done(seed): (row.run, seed) for row in self.rows for seed in self.seeds}
        return list(found.values())

    @property
    def curves(self) -> list[str]:
        """Path of the figure of its training curves."""
        return [str(RESULTS / "figures" / f"curves_{self.name}.png")]

    @property
    def views(self) -> str:
        """Path of the page that shows segmentation, tokens and relevance side by side."""
        return str(RESULTS / "figures" / f"{self.name}_views.png")

    @property
    def viewed(self) -> SegmentationRun | None:
        """The segmenter on that page: the first whose backbone learned from token labels, else from others; None without."""
        trained = [row.run for row in self.rows if row.run.start is not None]
        token = [run for run in trained if run.start and run.start.spec["recipe"]["supervision"] == "token"]
        return next(iter(token + trained), None)

    def as_json(self) -> dict[str, Any]:
        """What the table job reads: rows, their evaluations, and the paper's numbers."""
        return {
            "stage": "segment",  # tells it from a table of classifiers
            "name": self.name,
            "question": self.experiment.question,
            "paper": self.experiment.paper,
            "dataset": self.dataset,
            "testing": self.testing,
            "rows": [
                {
                    "name": row.name,
                    "label": row.label,
                    "differs": row.differs,
                    "model": row.model,
                    "head": row.head,
                    "backbone": row.run.backbone,
                    "run": row.run.name,
                    "iterations": row.run.spec["recipe"]["iterations"],
                    "crop_px": row.run.spec["recipe"]["crop_px"],
                    "seeds": {str(seed): row.run.result(seed) for seed in self.seeds},
                    "paper": asdict(row.paper),
                    "against": row.against,
                    "capped": list(row.run.capped),
                }
                for row in self.rows
            ],
            "paper_only": [asdict(row) for row in self.paper_only],
        }


@dataclass(frozen=True)
class PlannedSegmentation:
    """What one experiment plans."""

    table: SegmentationTable
    scenes: SceneJob


def plan_experiment(
    config: Config, name: str, experiment: SegmentExperiment, plan_backbone: Callable[[dict[str, Any], str], Run]
) -> PlannedSegmentation:
    """Plans one experiment.

    Args:
        config: validated.
        name: of the experiment.
        experiment: its entry.
        plan_backbone: (what a row says of a classifier's run, where it says so) -> the run.

    Raises:
        ConfigError: a row's key or value that is not legal.
    """
    where = f"segmentation.experiments.{name}"
    scenes = scene_job(config)
    rows = tuple(
        _row(config, experiment, row, scenes, f"{where}.rows.{row.name}", plan_backbone) for row in experiment.rows
    )
    for row in rows:
        if row.against is not None and next(other for other in rows if other.name == row.against).run == row.run:
            raise ConfigError(
                f"configuration key {where}.rows.{row.name}.against: {row.against!r} is the same training. Name a row "
                "with other settings."
            )
    table = SegmentationTable(
        name=name,
        experiment=experiment,
        seeds=experiment.seeds[: config.caps.seeds],
        rows=rows,
        dataset=config.segmentation.dataset.name,
        testing=evaluation_spec(config),
        paper_only=_other_rows(config, experiment, f"configuration key {where}.paper_only"),
    )
    return PlannedSegmentation(table, scenes)


def scene_job(config: Config) -> SceneJob:
    """The manifest of the configuration's scenes."""
    dataset = config.segmentation.dataset
    spec = {
        "stage": "scenes",
        "version": STAGE_VERSIONS["scenes"],
        "name": dataset.name,
        "release": dataset.version,
        "num_classes": dataset.num_classes,
        "classes": dataset.classes,
        "first_id": dataset.first_id,
        "ignore_id": dataset.ignore_id,
        "images": config.caps.images,
    }
    return SceneJob(name=f"{dataset.name}-{digest_of(spec)}", spec=spec)


def evaluation_spec(config: Config) -> dict[str, Any]:
    """What the evaluation of a segmenter depends on besides the segmenter."""
    testing = capped_testing(config.segmentation.testing, config.caps)
    return {
        "stage": "evaluate_segmentation",
        "version": STAGE_VERSIONS["evaluate_segmentation"],
        **testing.model_dump(mode="json"),
        "use_ema": config.evaluation.use_ema,
    }


def machine_section(config: Config) -> dict[str, Any]:
    """Where the scenes are, for machine.json."""
    dataset = config.segmentation.dataset
    return {
        "train": dataset.train.model_dump(),
        "val": dataset.val.model_dump(),
        "image_suffix": dataset.image_suffix,
        "mask_suffix": dataset.mask_suffix,
        "classes": dataset.classes,
        "on_unreadable": dataset.on_unreadable,
        "max_unreadable_fraction": dataset.max_unreadable_fraction,
    }


def check_run(config: Config, run: SegmentationRun) -> None:
    """Refuses a training that cannot run: a batch that the processes cannot share, a crop or blocks that the backbone lacks.

    Raises:
        ConfigError: with the nearest values that work.
    """
    recipe, settings = run.spec["recipe"], run.spec["model"]["settings"]
    check_shares(
        recipe["batch_size"], config.machine.segment_micro_batch, config.machine.processes, f"run {run.name}",
        key="machine.segment_micro_batch",
    )  # fmt: skip
    token_px = math.prod(settings["stem_strides"]) if "stem_strides" in settings else None
    if token_px and recipe["crop_px"] % token_px:
        crop, below = recipe["crop_px"], recipe["crop_px"] // token_px * token_px
        nearest = " or ".join(str(px) for px in (below, below + token_px) if px)
        raise ConfigError(
            f"run {run.name}: crop_px {crop} must be a multiple of the backbone's token size, {token_px} px; nearest: "
            f"{nearest}. Change the recipe's crop_px or caps.segment_crop_px."
        )
    depth, blocks = settings.get("depth"), run.spec["head"]["levels"]["blocks"]
    if depth is not None and not isinstance(blocks, str) and max(blocks) > depth:
        raise ConfigError(
            f"run {run.name}: its head reads block {max(blocks)}, but the backbone has {depth} (architecture.depth or caps.depth). "
            "Give levels.blocks numbers that there are, or late or even."
        )


def _row(
    config: Config,
    experiment: SegmentExperiment,
    row: SegmentRow,
    scenes: SceneJob,
    where: str,
    plan_backbone: Callable[[dict[str, Any], str], Run],
) -> SegmentationRow:
    section = config.segmentation
    choice = {
        **config.defaults.model_dump(),
        "head": section.defaults.head,
        "segment_recipe": section.defaults.recipe,
        "backbone": section.defaults.backbone,
        **experiment.set,
        **row.set,
    }
    own = [f"segment.{key}" for key in SegmentRecipe.model_fields] + [f"head.{key}" for key in Head.model_fields]
    check_row_keys(choice, where, (*OWN_KEYS, *own))
    model_name = known_name("model", choice["model"], config.models, f"{where}.set.model")
    head_name = known_name("head", choice["head"], section.heads, f"{where}.set.head")
    recipe_name = known_name(
        "recipe of segmentation", choice["segment_recipe"], section.recipes, f"{where}.set.segment_recipe"
    )
    backbone = choice["backbone"]
    if backbone not in BACKBONES:
        raise unknown_name("backbone", str(backbone), BACKBONES, f"configuration key {where}.set.backbone")
    head = revalidated(section.heads[head_name], _of(choice, "head"), f"{where}.set.head")
    recipe = revalidated(section.recipes[recipe_name], _of(choice, "segment"), f"{where}.set.segment")
    recipe, recipe_caps = capped_segment_recipe(recipe, config.caps)
    start, model, origin, capped = _backbone(config, model_name, backbone, choice, row, where, plan_backbone)
    if config.caps.images is not None and config.caps.images < section.dataset.train_images:
        recipe_caps = (*recipe_caps, f"images {section.dataset.train_images}->{config.caps.images}")
    spec = {
        "stage": "segment",
        "version": STAGE_VERSIONS["segment"],
        "dataset": scenes.spec,
        "model": model,
        "image_px": start.spec["image_px"] if start else _own_px(config, model_name, choice, where),
        "start": start.name.rsplit("-", 1)[1] if start else None,
        "head": head.as_spec(),
        "recipe": recipe.model_dump(mode="json"),
    }
    run = SegmentationRun(
        name=f"{model_name}-{origin}-{head_name}-{section.dataset.name}-{digest_of(spec)}",
        spec=spec,
        start=start,
        evaluation=digest_of(evaluation_spec(config)),
        capped=tuple(dict.fromkeys((*capped, *recipe_caps, *_testing_caps(config)))),
        scenes=scenes,
        backbone=backbone,
    )
    return SegmentationRow(
        name=row.name,
        label=row.label or row.name,
        differs=row.set,
        model=model_name,
        head=head_name,
        run=run,
        paper=_paper_of(row, f"configuration key {where}.paper_row"),
        against=row.against,
    )


def _of(choice: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(f"{prefix}."): value for key, value in choice.items() if key.startswith(f"{prefix}.")}


def _backbone(
    config: Config,
    model_name: str,
    backbone: str,
    choice: dict[str, Any],
    row: SegmentRow,
    where: str,
    plan_backbone: Callable[[dict[str, Any], str], Run],
) -> tuple[Run | None, dict[str, Any], str, tuple[str, ...]]:
    """The backbone's run, its section of the spec, what it learnt from in the run's name, and what caps changed of it."""
    if backbone == "trained":
        own = {key for key in choice if key in OWN_KEYS or key.startswith(("segment.", "head."))}
        start = plan_backbone({key: value for key, value in choice.items() if key not in own}, where)
        supervision = start.spec["recipe"]["supervision"]
        origin = supervision if start.labels is None else f"{supervision}-{start.labels.annotator}"
        section = {key: start.spec["model"][key] for key in ("architecture", "settings", "stochastic_depth")}
        return start, section, origin, start.capped
    strange = [key for key in row.set if key in OF_TRAINED or key.startswith(("train.", "finetune."))]
    if strange:
        raise ConfigError(
            f"configuration key {where}.set.{strange[0]}: describes a backbone's training, but backbone is {backbone!r}. Leave it "
            "out, or set backbone: trained."
        )
    model, capped = capped_model(with_settings(config.models[model_name], choice, where), config.caps)
    section = {
        "architecture": model.architecture,
        "settings": model.settings.model_dump(mode="json", exclude_none=True),
        "stochastic_depth": model.stochastic_depth,
    }
    given = {key: choice[key] for key in ("start", "start_sha256") if choice.get(key) is not None}
    if backbone == "random":
        if given:
            raise ConfigError(
                f"configuration key {where}.set.start: {given['start']!r}, but backbone is random. Set backbone: published."
            )
        return None, section, "random", capped
    if given:
        update = {"weights": given["start"], "weights_sha256": given.get("start_sha256")}
        model = revalidated(model, update, f"{where}.set.start")
    if model.weights is None:
        raise ConfigError(
            f"configuration key {where}.set.backbone: 'published', but neither models.{model_name} has weights nor the row a "
            "start. Give start: hub, file:NAME, folder:NAME or package:NAME."
        )
    names = ("weights", "weights_sha256", "weights_naming")
    return None, {**section, **{name: getattr(model, name) for name in names}}, "published", capped


def _own_px(config: Config, model_name: str, choice: Mapping[str, Any], where: str) -> int:
    return capped_model(with_settings(config.models[model_name], choice, where), config.caps)[0].image_px


def capped_segment_recipe(recipe: SegmentRecipe, caps: Caps) -> tuple[SegmentRecipe, tuple[str, ...]]:
    """The recipe within the caps, and what they changed, in words."""
    update: dict[str, Any] = {}
    notes = []
    if caps.iterations is not None and caps.iterations < recipe.iterations:
        update["iterations"] = caps.iterations
        update["interval_iterations"] = min(recipe.interval_iterations, caps.iterations)
        update["warmup_iterations"] = min(recipe.warmup_iterations, caps.iterations // 5)
        notes.append(f"iterations {recipe.iterations}->{caps.iterations}")
    if caps.batch_size is not None and caps.batch_size < recipe.batch_size:
        update["batch_size"] = caps.batch_size
        notes.append(f"batch_size {recipe.batch_size}->{caps.batch_size}")
    if caps.segment_crop_px is not None and caps.segment_crop_px < recipe.crop_px:
        update["crop_px"] = caps.segment_crop_px
        if recipe.short_side_px is not None:
            update["short_side_px"] = _shrunk(recipe.short_side_px, caps.segment_crop_px, recipe.crop_px)
        notes.append(f"crop_px {recipe.crop_px}->{caps.segment_crop_px}")
    return revalidated(recipe, update, "caps"), tuple(notes)


def capped_testing(testing: Testing, caps: Caps) -> Testing:
    """The testing within the caps: windows, their steps and photographs shrink by one factor."""
    px = caps.segment_crop_px
    if px is None or px >= testing.window_px:
        return testing
    update: dict[str, Any] = {"window_px": px, "stride_px": math.ceil(testing.stride_px * px / testing.window_px)}
    if testing.short_side_px is not None:
        update["short_side_px"] = _shrunk(testing.short_side_px, px, testing.window_px)
    return revalidated(testing, update, "caps")


def _shrunk(short_side_px: int, px: int, from_px: int) -> int:
    return max(16, math.ceil(short_side_px * px / from_px))


def _testing_caps(config: Config) -> tuple[str, ...]:
    before = config.segmentation.testing
    after = capped_testing(before, config.caps)
    return () if after == before else (f"window_px {before.window_px}->{after.window_px}",)


def _paper_of(row: SegmentRow, where: str) -> PaperScenes:
    """What the paper says of a row; of several references the first that has a number counts."""
    found = [paper.find_scenes(reference, where) for reference in row.paper_rows]
    if not found:
        return PaperScenes()
    joined = asdict(found[0])
    for other in found[1:]:
        joined |= {key: value for key, value in asdict(other).items() if joined[key] is None}
    return PaperScenes(**joined)


def _other_rows(config: Config, experiment: SegmentExperiment, where: str) -> tuple[PaperScenes, ...]:
    """The rows of the paper's table `paper_only` that no row here stands for; none where the scenes are others."""
    table = experiment.paper_only
    if table is None:
        return ()
    if table not in paper.SCENE_TABLES:
        raise unknown_name("table of segmentation in the paper", table, paper.SCENE_TABLES, where)
    if config.segmentation.dataset.name != paper.SCENES:
        return ()
    here = {reference for row in experiment.rows for reference in row.paper_rows}
    others = [f"{table}/{name}" for name in paper.row_names(table) if f"{table}/{name}" not in here]
    return tuple(paper.find_scenes(reference, where) for reference in others)
