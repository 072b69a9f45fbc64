"""The section `segmentation` of the configuration as typed data: scenes, heads, recipes, testing, experiments (section 4.4).

Validated with the whole configuration by `config`; read by the plan. Values live in config.yaml; here are only types, legal
ranges and how values of one entry must fit together. What a row of an experiment may say, `segment_rows` decides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from .config_types import Fraction, Frozen, Name, PaperTable, Pixels, Positive, Seeds

Backbone = Literal["trained", "random", "published"]
Rate = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
_FORMATS = (".png", ".jpg", ".jpeg")  # that somebody may write behind the ending of a name
RESCALINGS = (4.0, 2.0, 1.0, 0.5)  # that the heads can make of a map of tokens


def _without_format(ending: str) -> str:
    if "/" in ending:
        raise ValueError("the end of a file's name; folders are train and val")
    if ending.lower().endswith(_FORMATS):
        raise ValueError("the end of a name before the dot of its format; leave the format out")
    return ending


NameEnding = Annotated[str, AfterValidator(_without_format)]


class SceneFolders(Frozen):
    """Where one split's photographs and masks lie, under segmentation_root."""

    images: str
    masks: str


class SceneDataset(Frozen):
    """Photographs with a mask each."""

    name: Name
    version: str
    num_classes: Annotated[int, Field(ge=2, le=32767)]
    classes: str | None
    first_id: Annotated[int, Field(ge=0, le=65535)]
    ignore_id: Annotated[int, Field(ge=0, le=65535)] | None
    train: SceneFolders
    val: SceneFolders
    image_suffix: NameEnding
    mask_suffix: NameEnding
    on_unreadable: Literal["record", "fail"]
    max_unreadable_fraction: Fraction
    train_images: Positive
    val_images: Positive
    image_size: tuple[Positive, Positive]

    @pydantic.model_validator(mode="after")
    def _ignored_is_no_class(self) -> SceneDataset:
        last = self.first_id + self.num_classes - 1
        if self.ignore_id is not None and self.first_id <= self.ignore_id <= last:
            raise ValueError(
                f"ignore_id {self.ignore_id} is the id of a class: num_classes {self.num_classes} from first_id {self.first_id} "
                f"on are {self.first_id} to {last}. Give an id outside, or null where nothing is left out"
            )
        return self


class Levels(Frozen):
    """Which blocks of the transformer a head reads, and at what multiple of the token grid."""

    blocks: Literal["late", "even"] | tuple[Positive, ...]
    scales: Annotated[tuple[float, ...], Field(min_length=1)]
    deepest_channels: Positive | None = None

    @pydantic.model_validator(mode="after")
    def _one_block_a_level(self) -> Levels:
        wrong = [scale for scale in self.scales if scale not in RESCALINGS]
        if wrong:
            raise ValueError(
                f"scales: {wrong[0]:g} is not legal. Legal: {', '.join(f'{scale:g}' for scale in RESCALINGS)}"
            )
        if isinstance(self.blocks, str):
            return self
        if len(self.blocks) != len(self.scales):
            raise ValueError(f"blocks {list(self.blocks)} and scales {list(self.scales)} must be of equal length")
        if list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks {list(self.blocks)} must grow: blocks are counted from 1, first to last")
        return self


class AuxiliaryHead(Frozen):
    """A small convolutional head on one of the levels, for a second loss; not used in testing."""

    level: Annotated[int, Field(ge=0)]
    channels: Positive
    convolutions: Positive
    dropout: Dropout


class Head(Frozen):
    """What makes classes of pixels out of levels of a transformer."""

    kind: Literal["fcn", "upernet"]
    channels: Positive
    convolutions: Positive | None = None
    concatenate_input: bool | None = None
    pool_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    dropout: Dropout
    levels: Levels
    auxiliary: AuxiliaryHead | None

    @pydantic.model_validator(mode="after")
    def _keys_of_its_kind(self) -> Head:
        own = {"fcn": ("convolutions", "concatenate_input"), "upernet": ("pool_sizes",)}
        for kind, keys in own.items():
            for key in keys:
                if (getattr(self, key) is None) == (kind == self.kind):
                    raise ValueError(
                        f"{key}: only with kind {kind}"
                        if kind != self.kind
                        else f"kind {kind} needs {key}; config.yaml explains it"
                    )
        levels = len(self.levels.scales)
        if self.auxiliary is not None and self.auxiliary.level >= levels:
            raise ValueError(f"auxiliary.level {self.auxiliary.level} must be below the number of levels, {levels}")
        return self

    def as_spec(self) -> dict[str, Any]:
        """The keys of its kind, for a run's spec."""
        spec = self.model_dump(mode="json")
        return {key: value for key, value in spec.items() if value is not None or key == "auxiliary"}


class SegmentRecipe(Frozen):
    """Everything about a training for segmentation but backbone, head and scenes."""

    iterations: Positive
    interval_iterations: Positive
    batch_size: Positive
    learning_rate: Rate
    min_learning_rate: Annotated[float, Field(ge=0)]
    warmup_iterations: Annotated[int, Field(ge=0)]
    warmup_learning_rate: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Rate | None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    auxiliary_weight: Annotated[float, Field(ge=0)]
    crop_px: Pixels
    short_side_px: Pixels | None
    scale_range: tuple[Rate, Rate]
    max_class_share: Annotated[float, Field(gt=0, le=1)]
    flip_probability: Fraction
    photometric: bool

    @pydantic.model_validator(mode="after")
    def _values_fit_together(self) -> SegmentRecipe:
        if self.iterations % self.interval_iterations:
            interval = self.interval_iterations
            below = self.iterations // interval * interval
            nearest = " or ".join(str(number) for number in (below, below + interval) if number)
            raise ValueError(
                f"iterations {self.iterations} must be a multiple of interval_iterations {interval}; nearest: {nearest}"
            )
        if self.warmup_iterations >= self.iterations:
            raise ValueError(f"warmup_iterations {self.warmup_iterations} must be below iterations {self.iterations}")
        for key in ("min_learning_rate", "warmup_learning_rate"):
            if getattr(self, key) > self.learning_rate:
                raise ValueError(f"{key} {getattr(self, key):g} is above learning_rate {self.learning_rate:g}")
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range {list(self.scale_range)} must be (smallest, largest)")
        return self


class Testing(Frozen):
    """How a trained segmenter is measured."""

    __test__ = False  # pytest: no class of tests

    mode: Literal["slide", "whole"]
    window_px: Pixels
    stride_px: Positive
    short_side_px: Pixels | None
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(min_length=1)]
    flip: bool

    @pydantic.model_validator(mode="after")
    def _windows_leave_nothing_out(self) -> Testing:
        if self.stride_px > self.window_px:
            raise ValueError(
                f"stride_px {self.stride_px} is above window_px {self.window_px}; pixels would be left out"
            )
        if len(set(self.scales)) != len(self.scales):
            raise ValueError(f"scales {list(self.scales)} must differ")
        return self


class SegmentDefaults(Frozen):
    """What a row is where it says nothing else."""

    head: Name
    recipe: Name
    backbone: Backbone


class SegmentRow(Frozen):
    """One row of a table: a name, what differs, and the row whose paired seeds it is compared with."""

    name: Name
    label: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    paper_row: str | tuple[str, ...] | None = None
    against: Name | None = None

    @property
    def paper_rows(self) -> tuple[str, ...]:
        """References to the paper's rows, TABLE/ROW."""
        return (
            () if self.paper_row is None else (self.paper_row,) if isinstance(self.paper_row, str) else self.paper_row
        )


class SegmentExperiment(Frozen):
    """A table of segmentation: a question, the paper's tables, and the trainings that answer it."""

    question: str
    paper: str
    set: dict[str, Any] = Field(default_factory=dict)
    rows: Annotated[tuple[SegmentRow, ...], Field(min_length=1)]
    paper_only: PaperTable | None = None
    seeds: Seeds

    @pydantic.model_validator(mode="after")
    def _names_stand_once(self) -> SegmentExperiment:
        names = [row.name for row in self.rows]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"row name {doubled[0]!r} stands twice")
        for row in self.rows:
            if row.against is not None and (row.against not in names or row.against == row.name):
                others = ", ".join(name for name in names if name != row.name)
                raise ValueError(
                    f"row {row.name!r} against {row.against!r}: no other row of that name. Legal: {others}"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ")
        return self


class Segmentation(Frozen):
    """Everything about segmentation."""

    dataset: SceneDataset
    heads: dict[Name, Head]
    recipes: dict[Name, SegmentRecipe]
    testing: Testing
    defaults: SegmentDefaults
    experiments: dict[Name, SegmentExperiment]
