"""The configuration as typed, frozen data: what may be written in config.yaml and its overlays, and what it must be.

Called once by rules/common.smk at parse time and by nothing later: jobs read the resolved spec.json and machine.json.
Values live in config.yaml, not here; here are only types, legal ranges and how names refer to each other.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from . import paper
from .config_types import Fraction, Frozen, Name, PaperTable, Percent, Pixels, Positive, Seeds, Sha256
from .errors import AnnotatorMisfitError, ConfigError, unknown_name
from .segment_config import Segmentation

TAKEN = (
    "comparison_cait",
    "first_light",
    "label_fidelity",
    "plan",
    "published",
    "so_far",
)  # files of results/ that are no experiment's
# timm's increasing set, "rand-m9-mstd0.5-inc1" in its notation; geometric ones move the labels with the pixels
RandAugmentOperation = Literal[
    "AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
    "Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
]  # fmt: skip
GEOMETRIC_OPERATIONS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
PIXEL_OPERATIONS = tuple(name for name in typing.get_args(RandAugmentOperation) if name not in GEOMETRIC_OPERATIONS)


class Dataset(Frozen):
    """The photographs: an image folder or tar files with one folder per class."""

    name: Name
    version: str
    num_classes: Positive
    class_map: str | None = None
    format: Literal["folder", "tar", "webdataset", "huggingface"]
    train: str
    val: str | None
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    val_seed: int = 0
    near_duplicates: bool = True
    on_unreadable: Literal["record", "fail"]
    max_unreadable_fraction: Fraction
    train_images: Positive
    val_images: Positive

    @pydantic.model_validator(mode="after")
    def _one_source_of_validation(self) -> Dataset:
        if (self.val is None) == (self.val_fraction is None):
            raise ValueError(
                "give either val (a folder or tar) or val_fraction (a share of train), not both or neither"
            )
        return self


class Labels(Frozen):
    """The score maps of stage 1."""

    image_px: Pixels
    view: Literal["squash", "centre_crop"]
    k: Annotated[int, Field(ge=1, le=65536)] | Literal["all"]
    tail: bool
    precision: Literal["float16"]
    score_step: Annotated[float, Field(ge=0, le=4)]
    flip: bool
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1)]
    shards: Annotated[int, Field(ge=1, le=99999)]

    @pydantic.model_validator(mode="after")
    def _scales_give_whole_pixels(self) -> Labels:
        for scale in self.scales:
            side = scale * self.image_px
            if abs(side - round(side)) > 1e-6:
                raise ValueError(
                    f"scales {list(self.scales)}: {scale} x image_px {self.image_px} is {side:g}, not whole pixels"
                )
        return self


class Annotator(Frozen):
    """A pretrained classifier that labels every cell of its last feature map."""

    architecture: str
    weights: Annotated[str, Field(pattern=r"^(hub|file:.+|folder:.+|package:[A-Za-z0-9_.]+)$")]
    weights_sha256: Sha256 | None = None
    weights_naming: Literal["timm", "efficientnet_pytorch"] = "timm"
    num_classes: Positive
    grid: tuple[Positive, Positive]
    parameters_m: Annotated[float, Field(gt=0)]
    gmacs: Annotated[float, Field(gt=0)]
    source: str | None = None
    paper_top1: Percent | None = None
    paper_row: str | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accuracy_of_the_paper(cls, values: Any) -> Any:
        """Fills paper_top1 from the paper's row."""
        if not isinstance(values, Mapping) or not isinstance(values.get("paper_row"), str):
            return values
        if values.get("paper_top1") is not None:
            raise ValueError("paper_top1 and paper_row: give one of them, for paper_row stands for the paper's number")
        try:
            table, row = paper.find_row(values["paper_row"], "paper_row").place
        except ConfigError as error:
            raise ValueError(str(error)) from None
        number = paper.value(table, row, "annotator_top1")
        return {**values, "paper_top1": number.value if number else None}


class AdaptedAnnotator(Frozen):
    """An annotator for this data set's own classes, made from another one; an entry of `annotators` with the key base."""

    base: Name
    adapt: Literal["probe", "finetune"]
    folds: Annotated[int, Field(ge=0, le=20)] = 0
    model: Name | None = None
    recipe: Name | None = None

    @pydantic.model_validator(mode="after")
    def _values_fit_together(self) -> AdaptedAnnotator:
        if self.folds == 1:
            raise ValueError("folds 1: one fold has no other to learn from; give 0 (one head) or 2 to 20")
        if self.adapt == "finetune" and self.folds:
            raise ValueError("folds: only with adapt: probe; a fine-tuned network for each fold is not built")
        if self.adapt == "finetune" and (self.model is None or self.recipe is None):
            raise ValueError(
                "adapt: finetune needs model (a student with the base's architecture and weights) and recipe"
            )
        if self.adapt == "probe" and (self.model or self.recipe):
            raise ValueError("model and recipe: only with adapt: finetune")
        return self


class ModelSettings(Frozen):
    """What may be changed of an LV-ViT; None keeps the architecture's own value."""

    depth: Positive | None = None
    width: Positive | None = None
    heads: Positive | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    stem_kernels: tuple[Positive, ...] | None = None
    stem_strides: tuple[Positive, ...] | None = None
    stem_channels: Positive | None = None
    residual_scale: Annotated[float, Field(gt=0)] | None = None
    stochastic_depth_rule: Literal["linear", "fixed"] | None = None

    @pydantic.model_validator(mode="after")
    def _values_fit_together(self) -> ModelSettings:
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        kernels, strides = self.stem_kernels, self.stem_strides
        if kernels is not None and strides is not None and len(kernels) != len(strides):
            raise ValueError(f"stem_kernels {list(kernels)} and stem_strides {list(strides)} must be of equal length")
        return self


class Model(Frozen):
    """A student."""

    architecture: Annotated[str, Field(pattern=r"^(lvvit_[tsml]|t2t_vit_(t_)?(14|19|24)|timm/.+)$")]
    image_px: Pixels
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)]
    eval_crop: Annotated[float, Field(gt=0, le=1)]
    weights: Annotated[str, Field(pattern=r"^(hub|file:.+|folder:.+|package:[A-Za-z0-9_.]+)$")] | None = None
    weights_sha256: Sha256 | None = None
    weights_naming: Literal["timm", "efficientnet_pytorch"] = "timm"
    settings: ModelSettings = ModelSettings()
    parameters_m: Annotated[float, Field(gt=0)] | None = None
    gmacs: Annotated[float, Field(gt=0)] | None = None

    @pydantic.model_validator(mode="after")
    def _values_fit_together(self) -> Model:
        if not self.architecture.startswith("lvvit_") and self.settings != ModelSettings():
            raise ValueError(f"architecture {self.architecture!r} takes no settings; only lvvit_t, _s, _m and _l do")
        stride = math.prod(self.settings.stem_strides or (16,))
        if not self.architecture.startswith("timm/") and self.image_px % stride:
            below = self.image_px // stride * stride
            nearest = f"{below} or {below + stride}" if below else f"{stride}"
            raise ValueError(
                f"image_px {self.image_px} must be a multiple of the token size, {stride} px; nearest: {nearest}"
            )
        return self


class Recipe(Frozen):
    """Everything about a training but the model and the data."""

    epochs: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_batch: Positive | None
    min_learning_rate: Annotated[float, Field(ge=0)]
    warmup_learning_rate: Annotated[float, Field(ge=0)]
    warmup_epochs: Annotated[int, Field(ge=0)]
    cooldown_epochs: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)] | None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    supervision: Literal["token", "relabel", "hard"]
    class_target: Literal["map", "label", "blend"]
    token_weight: Annotated[float, Field(ge=0)]
    label_mass: Literal["published", "exact"]
    geometry: Literal["exact", "released"]
    participation: Annotated[float, Field(gt=0, le=1)]
    mix: Literal["none", "mixtoken", "cutmix", "mixup", "mixtoken_mixup", "cutmix_mixup"]
    mix_alpha: Annotated[float, Field(gt=0)]
    mixup_alpha: Annotated[float, Field(gt=0)]
    mix_probability: Fraction
    crop_scale: tuple[Fraction, Fraction]
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    interpolation: Literal["random", "bilinear", "bicubic"]
    flip_probability: Fraction
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)]
    randaugment_std: Annotated[float, Field(ge=0)]
    randaugment_count: Annotated[int, Field(ge=0)]
    randaugment_operations: tuple[RandAugmentOperation, ...]
    erasing_probability: Fraction
    erasing_mode: Literal["pixel", "const"]
    read_order: Literal["shuffled", "sequential"]
    shuffle_buffer: Positive
    cache_short_side_px: Pixels | None

    @pydantic.model_validator(mode="after")
    def _values_fit_together(self) -> Recipe:
        for name, (smallest, largest) in {"crop_scale": self.crop_scale, "crop_ratio": self.crop_ratio}.items():
            if smallest > largest or smallest == 0:
                raise ValueError(f"{name} {[smallest, largest]} must be [smallest, largest], above 0")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if self.randaugment_count and not self.randaugment_operations:
            raise ValueError("randaugment_operations is empty; set randaugment_count: 0 to switch RandAugment off")
        return self


class Defaults(Frozen):
    """What an experiment's row is where it says nothing else."""

    model: Name
    annotator: Name
    recipe: Name
    finetune_recipe: Name
    finetune_px: tuple[Pixels, ...] = ()


class Row(Frozen):
    """One row of a result table: a name and what differs from the experiment's base."""

    name: Name
    label: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    paper_top1: Percent | None = None
    paper_row: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_number_of_the_paper(self) -> Row:
        if self.paper_top1 is not None and self.paper_row is not None:
            raise ValueError(
                f"row {self.name!r} has paper_top1 and paper_row: give one of them, for paper_row stands for the paper's number"
            )
        return self


class Experiment(Frozen):
    """A table of the study: a question, the paper's table or figure, and the runs that answer it."""

    question: str
    paper: str
    set: dict[str, Any] = Field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    grid: dict[str, list[Any] | Literal["selected"]] = Field(default_factory=dict)
    paper_top1: dict[str, Percent] = Field(default_factory=dict)
    paper_rows: PaperTable | None = None
    paper_only: PaperTable | None = None
    seeds: Seeds
    figure: Literal["rows", "participation", "annotators", "bars", "path"] = "rows"

    @pydantic.model_validator(mode="after")
    def _something_to_run(self) -> Experiment:
        if not self.rows and not self.grid:
            raise ValueError("give rows or a grid")
        if self.paper_rows is not None and self.paper_top1:
            raise ValueError("paper_top1 and paper_rows: give one of them; null takes paper_rows back in an overlay")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ")
        return self


class Select(Frozen):
    """What this study builds, out of the catalogues."""

    annotators: tuple[Name, ...]
    experiments: tuple[Name, ...]
    segmentation: tuple[Name, ...] = ()
    published: Annotated[tuple[Name, ...], Field(min_length=1)] | Literal["all"] = "all"

    @pydantic.model_validator(mode="after")
    def _something_is_built(self) -> Select:
        if not self.experiments and not self.segmentation:
            raise ValueError("experiments and segmentation are both empty: name a table in one of them")
        return self


class Caps(Frozen):
    """Upper bounds on what costs; they win over every experiment's own value. None: no bound."""

    epochs: Positive | None = None
    images: Positive | None = None
    batch_size: Positive | None = None
    depth: Positive | None = None
    width: Positive | None = None
    image_px: Pixels | None = None
    finetune_px: Pixels | None = None
    seeds: Positive | None = None
    iterations: Positive | None = None
    segment_crop_px: Pixels | None = None


class RealLabels(Frozen):
    """Reassessed labels of a data set's validation photographs, several or none for each."""

    dataset: Name
    file: str
    bytes: Positive
    sha256: Sha256


class TestSet(Frozen):
    """A further folder of photographs of the data set's classes, or of some of them."""

    path: str
    classes: Annotated[str, Field(pattern=r"^(names|index|file:.+)$")]
    images: Positive | None


class Evaluation(Frozen):
    """How a trained model is measured."""

    interpolation: Literal["bilinear", "bicubic"]
    use_ema: bool
    agreement: Name | None
    real_labels: RealLabels | None
    test_sets: tuple[Name, ...]


class Published(Frozen):
    """A checkpoint that somebody published, and the accuracy that was printed for it."""

    architecture: Annotated[str, Field(pattern=r"^(lvvit_[tsml]|t2t_vit_(t_)?(14|19|24)|timm/.+)$")]
    weights: Annotated[str, Field(pattern=r"^(hub|file:.+|folder:.+|package:[A-Za-z0-9_.]+)$")]
    weights_sha256: Sha256 | None = None
    weights_naming: Literal["timm", "efficientnet_pytorch"] = "timm"
    source: str
    image_px: Pixels
    eval_crop: Annotated[float, Field(gt=0, le=1)]
    dataset: Name
    top1: Annotated[float, Field(ge=0, le=100)] | None
    real_top1: Annotated[float, Field(ge=0, le=100)] | None = None


class Fidelity(Frozen):
    """The sample on which stored labels are compared with their annotators."""

    images: Positive
    crops: Positive
    seed: Annotated[int, Field(ge=0)]


class Machine(Frozen):
    """Where and how jobs run; in no digest.

    Changes numbers by rounding only, but for micro_batch, whose size the stem's batch norms and the mixing partners see;
    done.json records it.
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    threads: Positive
    workers: Annotated[int, Field(ge=0)]
    annotate_batch: Positive
    annotate_compile: bool
    micro_batch: Positive
    annotate_mem_mb: Positive
    train_mem_mb: Positive
    segment_micro_batch: Positive
    segment_mem_mb: Positive
    speed_seconds: Annotated[float, Field(ge=0)]
    part_seconds: Annotated[float, Field(gt=0)]
    label_storage: Literal["compact", "fast"]
    validate_every_epochs: Annotated[int, Field(ge=0)]
    validation_crop: Annotated[float, Field(gt=0, le=1)]
    processes: Positive
    nodes: Positive
    nodes_of: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*(@[0-9]+)?$")], Positive] = Field(
        default_factory=dict
    )
    sharding: Literal["none", "fsdp"]
    compile: bool
    grad_checkpointing: bool
    channels_last: bool
    tf32: bool
    leg_epochs: Positive | None
    max_job_hours: Annotated[float, Field(gt=0)] | None
    checkpoint_seconds: Annotated[float, Field(gt=0)]
    min_label_coverage: Fraction
    log_every_steps: Positive
    tensorboard: bool
    wandb_project: str | None
    prefetch_batches: Positive
    decode_cache: str | None
    augment_on_gpu: bool


class GpuType(Frozen):
    """What one kind of GPU (or processor) achieves."""

    peak_tflops: Annotated[float, Field(gt=0)]
    train_share: Annotated[float, Field(gt=0, le=1)]
    infer_share: Annotated[float, Field(gt=0, le=1)]
    evidence: Literal["measured", "published", "assumed"]
    source: str


class PlanSettings(Frozen):
    """What jobs run on, what that costs, and how fast it is; for estimates and time limits, in no digest."""

    gpu: str
    gpus: Positive
    price_per_gpu_hour: Annotated[float, Field(ge=0)]
    currency: Annotated[str, Field(pattern=r"^[A-Za-z]{2,10}$")]
    job_start_s: Annotated[float, Field(ge=0)]
    gpu_types: dict[Name, GpuType]


class Config(Frozen):
    """The whole study."""

    data_root: str
    weights_root: str
    segmentation_root: str
    dataset: Dataset
    labels: Labels
    evaluation: Evaluation
    fidelity: Fidelity
    machine: Machine
    plan: PlanSettings
    defaults: Defaults
    caps: Caps = Caps()
    annotators: dict[Name, Annotator]
    adapted_annotators: dict[Name, AdaptedAnnotator] = Field(default_factory=dict)
    models: dict[Name, Model]
    published: dict[Name, Published]
    test_sets: dict[Name, TestSet]
    recipes: dict[Name, Recipe]
    experiments: dict[Name, Experiment]
    segmentation: Segmentation
    select: Select


def load_config(raw: Mapping[str, Any]) -> Config:
    """Validates a merged configuration.

    Args:
        raw: the dictionary as Snakemake merged it from config.yaml, overlays and --config.

    Raises:
        ConfigError: one line with the key's path, the value found, what is legal and a guess at what was meant.
    """
    try:
        config = Config.model_validate(_with_adapted_apart(raw))
    except pydantic.ValidationError as error:
        raise ConfigError(describe_problems(error).replace("adapted_annotators", "annotators")) from None
    config = _with_adapted_resolved(config)
    _check_references(config)
    return config


def _with_adapted_apart(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the entries of `annotators` that have a base into a section of their own type."""
    entries = raw.get("annotators")
    if not isinstance(entries, Mapping):
        return dict(raw)
    adapted = {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, Mapping) and {"base", "adapt", "folds"} & entry.keys()
    }
    plain = {name: entry for name, entry in entries.items() if name not in adapted}
    return {**raw, "annotators": plain, **({"adapted_annotators": adapted} if adapted else {})}


def _with_adapted_resolved(config: Config) -> Config:
    """Gives each adapted annotator an entry like its base's, with the data set's classes."""
    resolved = dict(config.annotators)
    for name, adapted in config.adapted_annotators.items():
        where = f"configuration key annotators.{name}"
        if adapted.base not in config.annotators:
            raise unknown_name("annotator with weights", adapted.base, config.annotators, f"{where}.base")
        base = config.annotators[adapted.base]
        if adapted.model is not None:
            if adapted.model not in config.models:
                raise unknown_name("model", adapted.model, config.models, f"{where}.model")
            architecture = config.models[adapted.model].architecture
            if architecture.removeprefix("timm/").split(".")[0] != base.architecture.split(".")[0]:
                raise ConfigError(
                    f"{where}.model: {adapted.model!r} is {architecture}, the base {adapted.base!r} is {base.architecture}; "
                    "they must be the same network"
                )
        if adapted.recipe is not None and adapted.recipe not in config.recipes:
            raise unknown_name("recipe", adapted.recipe, config.recipes, f"{where}.recipe")
        resolved[name] = base.model_copy(
            update={"num_classes": config.dataset.num_classes, "paper_top1": None, "paper_row": None}
        )
    return config.model_copy(update={"annotators": resolved})


def _check_references(config: Config) -> None:
    def check(kind: str, name: str, catalogue: Mapping[str, Any], where: str) -> None:
        if name not in catalogue:
            raise unknown_name(kind, name, catalogue, f"configuration key {where}")

    check("model", config.defaults.model, config.models, "defaults.model")
    check("annotator", config.defaults.annotator, config.annotators, "defaults.annotator")
    check("recipe", config.defaults.recipe, config.recipes, "defaults.recipe")
    check("recipe", config.defaults.finetune_recipe, config.recipes, "defaults.finetune_recipe")
    check("GPU", config.plan.gpu, config.plan.gpu_types, "plan.gpu")
    if config.evaluation.agreement is not None:
        check("annotator", config.evaluation.agreement, config.annotators, "evaluation.agreement")
        check_annotator_fits(config, config.evaluation.agreement, "evaluation.agreement")
    for name in config.experiments:
        if name in TAKEN:
            raise ConfigError(
                f"configuration key experiments.{name}: results/{name}.csv is another result of every study. Choose another name; "
                f"taken: {', '.join(TAKEN)}"
            )
    _check_segmentation(config, check)
    for position, name in enumerate(config.evaluation.test_sets):
        check("test set", name, config.test_sets, f"evaluation.test_sets[{position}]")
    if config.select.published != "all":
        for position, name in enumerate(config.select.published):
            check("published checkpoint", name, config.published, f"select.published[{position}]")
    for position, name in enumerate(config.select.annotators):
        check("annotator", name, config.annotators, f"select.annotators[{position}]")
    for position, name in enumerate(config.select.experiments):
        check("experiment", name, config.experiments, f"select.experiments[{position}]")


def _check_segmentation(config: Config, check: Callable[[str, str, Mapping[str, Any], str], None]) -> None:
    """The same of the section `segmentation`, whose tables lie beside those of experiments."""
    section = config.segmentation
    check("head", section.defaults.head, section.heads, "segmentation.defaults.head")
    check("recipe of segmentation", section.defaults.recipe, section.recipes, "segmentation.defaults.recipe")
    for name in section.experiments:
        if name in TAKEN or name in config.experiments:
            raise ConfigError(
                f"configuration key segmentation.experiments.{name}: results/{name}.csv is another result. Choose another name; "
                f"taken: {', '.join((*TAKEN, *config.experiments))}"
            )
    for position, name in enumerate(config.select.segmentation):
        check("experiment of segmentation", name, section.experiments, f"select.segmentation[{position}]")


def check_annotator_fits(config: Config, name: str, where: str) -> None:
    """Refuses an annotator whose classes are not the data set's.

    Raises:
        AnnotatorMisfitError: the numbers of classes differ.
    """
    annotator = config.annotators[name]
    if annotator.num_classes != config.dataset.num_classes:
        raise AnnotatorMisfitError(
            f"configuration key {where}: annotator {name!r} knows {annotator.num_classes} classes, data set "
            f"{config.dataset.name!r} has {config.dataset.num_classes} (dataset.num_classes). "
            "Choose an annotator trained for these classes, or give the data set a class_map onto the annotator's."
        )


def describe_problems(error: pydantic.ValidationError, within: str = "") -> str:
    """Turns pydantic's report into one sentence per problem, at most three, unknown keys first.

    Args:
        error: of the validation of the whole configuration, or of a section of it.
        within: the section's path, "" for the whole.
    """
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    lines = [describe_problem(item, within) for item in problems[:3]]
    if len(problems) > 3:
        lines.append(f"and {len(problems) - 3} more")
    return "; ".join(lines)


def describe_problem(item: Any, within: str) -> str:
    """One problem of pydantic's report as a sentence; `within` as for `describe_problems`."""
    path = [part for part in item["loc"] if not _is_type_tag(part)]
    where = ".".join(filter(None, [within, *map(str, path)])).replace(".[", "[")
    found = item.get("input")
    shown = repr(found) if isinstance(found, (str, int, float, bool, type(None), list)) else type(found).__name__
    if item["type"] == "extra_forbidden":
        legal = sorted(_keys_at(path[:-1]))
        close = difflib.get_close_matches(str(path[-1]), legal, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"configuration key {where}: unknown key (value {shown}).{hint} Legal here: {', '.join(legal)}"
    if item["type"] == "missing":
        return f"configuration key {where}: missing. Give it a value; config.yaml explains it"
    if item["type"] == "literal_error":
        choices = item["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        close = difflib.get_close_matches(str(found), choices.split(", "), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"configuration key {where}: {shown} is not legal.{hint} Legal: {choices}"
    message = (
        item["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, as [1, 2]")
    )  # what YAML has of it
    if item["type"] == "value_error" and isinstance(
        found, Mapping
    ):  # of several keys of a section, which the message names
        return f"configuration key {where}: {message}"
    return f"configuration key {where}: {shown} is not legal: {message[0].lower()}{message[1:]}"


def _is_type_tag(part: Any) -> bool:
    """Whether a location part is one that pydantic adds for a branch of a union, not a key of the user's."""
    return isinstance(part, str) and (part.startswith(("constrained-", "literal[", "list[")) or part == "[key]")


def _keys_at(path: list[Any]) -> Iterator[str]:
    """Yields the legal keys of the section that a path of keys leads to."""
    here: Any = Config
    for part in path:
        if isinstance(here, type) and issubclass(here, Frozen):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:  # dict[str, X] or tuple[X, ...]: one step down is X
            arguments = [argument for argument in typing.get_args(here) if argument is not Ellipsis]
            here = arguments[-1] if arguments else None
        while typing.get_origin(here) in (Annotated, typing.Union, types.UnionType):
            here = next(argument for argument in typing.get_args(here) if argument is not type(None))
    if isinstance(here, type) and issubclass(here, Frozen):
        yield from here.model_fields
