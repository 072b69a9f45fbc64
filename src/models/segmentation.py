"""A segmenter: a backbone of this package, its feature levels rescaled, a head and in training an auxiliary one; its files.

Guarantees that every parameter gets a gradient (what no level needs is dropped), that images of any size work in eval mode,
and that a file read is the model written. Called by segment, eval and other people's code; trains and measures nothing.
Source: paper section 4.4; the released configurations for mmsegmentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import CheckpointError, ConfigError
from ..core.files import read_json, write_json
from ..core.segment_config import Head
from .checkpoints import refuse_mismatch
from .feature_levels import choose_blocks, measure_levels
from .model_config import CONFIG_FILE, SEGMENTATION_TASK, three
from .registry import create_model
from .segmentation_heads import Rescaling, create_auxiliary, create_head, levels_read, read_head
from .tokens import TokenModel
from .transformer import tokens_per_side
from .weights import AVERAGED_FILE, WEIGHTS_FILE, checkpoint_file, read_checkpoint, save_weights

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SegmentationOutput(NamedTuple):
    """What a segmenter says in training.

    Attributes:
        logits: (batch, classes, rows, cols), at the head's own resolution; a loss resizes them to the mask.
        auxiliary: the same of the auxiliary head at its resolution; None where there is none.
    """

    logits: Tensor
    auxiliary: Tensor | None


class SegmentationModel(nn.Module):
    """A backbone with a head that gives every pixel a class; `create_segmenter` makes it.

    Args:
        backbone: with its classifier heads; they are dropped.
        head: its description.
        num_classes: classes of a pixel.

    Attributes:
        backbone: gives feature maps only.
        levels: which maps, and their channels and cells.
        rescalings: by number of the level, from 0: its map at another resolution.
        head, auxiliary: make logits of the rescaled maps; the second in training only, None where there is none.
        num_classes: classes of a pixel.
        token_px: pixels along a token's side.
        mean, std: per channel, of RGB in [0, 1]; images are given as (image - mean) / std.
        head_settings: what `head` was.

    Raises:
        ConfigError: a backbone that gives no feature maps for the head.
    """

    def __init__(self, backbone: TokenModel, head: Head, num_classes: int) -> None:
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; a segmenter tells at least 2 classes apart")
        super().__init__()
        blocks = choose_blocks(head.levels.blocks, backbone.level_count, len(head.levels.scales))
        backbone.keep_levels(blocks[-1])
        self.backbone = backbone
        self.levels = measure_levels(backbone, blocks)
        self.num_classes, self.head_settings = num_classes, head
        self.token_px = backbone.image_px // backbone.grid[0]
        self.mean, self.std = backbone.mean, backbone.std
        widths = [*self.levels.widths[:-1], head.levels.deepest_channels or self.levels.widths[-1]]
        # a pyramid of its own keeps its resolutions: scales are meant for the one grid of a plain transformer
        scales = [1.0] * len(blocks) if self.levels.is_pyramid else head.levels.scales
        self.rescalings = nn.ModuleDict(
            {
                str(level): Rescaling(self.levels.widths[level], widths[level], scales[level])
                for level in levels_read(head)  # of others no loss would give a gradient
            }
        )
        self.head = create_head(head, widths, num_classes)
        self.auxiliary = create_auxiliary(head, widths, num_classes)

    @property
    def image_px(self) -> int:
        """Side of the square images whose positions the backbone has; others are interpolated from them in each pass."""
        return self.backbone.image_px

    def forward(self, images: Tensor) -> SegmentationOutput | Tensor:
        """Gives every pixel a class.

        Args:
            images: float (batch, 3, height, width), normalised with `mean` and `std`.

        Returns:
            In training mode a SegmentationOutput; in eval mode logits (batch, classes, height, width).

        Raises:
            ValueError: another shape; in training also sides that are no multiples of `token_px`.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images are {tuple(images.shape)}; a segmenter takes (batch, 3, height, width)")
        height, width = images.shape[-2:]
        missing = -height % self.token_px, -width % self.token_px
        if any(missing):
            if self.training:
                raise ValueError(
                    f"images are {height} x {width} px; in training both sides are multiples of a token's, {self.token_px} px"
                )
            images = F.pad(images, (0, missing[1], 0, missing[0]))  # with 0, the mean colour
        maps = self.levels.read(self.backbone, images)
        for level, rescaling in self.rescalings.items():
            maps[int(level)] = rescaling(maps[int(level)])
        logits = self.head(maps)
        if self.training:
            return SegmentationOutput(logits, self._auxiliary_logits(maps))
        logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def _auxiliary_logits(self, maps: list[Tensor]) -> Tensor | None:
        if self.auxiliary is None or self.head_settings.auxiliary is None:
            return None
        logits: Tensor = self.auxiliary([maps[self.head_settings.auxiliary.level]])
        return logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: the backbone's blocks are computed again in the backward pass.

        Raises:
            ConfigError: the backbone cannot.
        """
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimiser factory keeps free of weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


def create_segmenter(
    backbone: TokenModel, head: Mapping[str, Any] | Head, num_classes: int, *, crop_px: int | None = None
) -> SegmentationModel:
    """Makes a segmenter in training mode: the backbone in the weights it has, the heads in random ones.

    Args:
        backbone: of `create_model` or `load_model`; it is taken over, and its classifier heads are dropped.
        head: its description, as config.yaml's `segmentation.heads` and a spec's `head` have it.
        num_classes: classes of a pixel.
        crop_px: side of the crops of a training: positions are interpolated to their grid once, and learnt there. None
            leaves them on the backbone's own grid, interpolated in each pass.

    Raises:
        ConfigError: a head that there is not, a backbone that gives no feature maps for it, or a crop that its tokens do not
            divide.
    """
    described = read_head(head)
    if crop_px is not None:
        tokens_per_side(crop_px, backbone.image_px // backbone.grid[0], "crop_px")
        if backbone.position_name in backbone.state_dict():  # Swin and CNNs have none, and Swin's windows would change
            backbone.set_image_px(crop_px)
    return SegmentationModel(backbone, described, num_classes).train()


@dataclass(frozen=True)
class SegmenterConfig:
    """What config.json says of a segmenter.

    Attributes:
        architecture: of the backbone, a name that `create_model` takes.
        settings: what differs from its preset.
        image_px: side of the square images that its positions belong to.
        num_classes: classes of a pixel.
        classes: what they are called, by index.
        head: description of the head.
        mean, std: per channel, of RGB in [0, 1].
        short_side_px: to which photographs are resized before they are read; None where they keep their size.
        crop_px: side of the crops it was trained on: the window for photographs of any size.
    """

    architecture: str
    settings: dict[str, Any]
    image_px: Annotated[int, Field(ge=1)]
    num_classes: Annotated[int, Field(ge=2)]
    classes: tuple[str, ...]
    head: Head
    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]
    short_side_px: Annotated[int, Field(ge=1)] | None
    crop_px: Annotated[int, Field(ge=1)]

    def create(self) -> SegmentationModel:
        """The segmenter in random weights, in training mode.

        Raises:
            ConfigError: a setting that this version does not take.
        """
        backbone = create_model(self.architecture, 1, self.image_px, **self.settings)
        backbone.mean, backbone.std = self.mean, self.std
        return create_segmenter(backbone, self.head, self.num_classes)


@dataclass(frozen=True)
class LoadedSegmenter:
    """A segmenter in eval mode and what is known of it.

    Attributes:
        classes: names to show, by index.
        config: what config.json says.
        averaged: whether the weights are a moving average (EMA).
    """

    model: SegmentationModel
    classes: tuple[str, ...]
    config: SegmenterConfig
    averaged: bool


def save_segmenter(
    folder: Path, model: SegmentationModel, spec: Mapping[str, Any], classes: Sequence[str], seed: int, *,
    averaged: SegmentationModel | None = None,
) -> None:  # fmt: skip
    """Writes config.json, model.safetensors and, where there are averaged weights, model_ema.safetensors; each atomically.

    Args:
        folder: of the seed; exists.
        model: after training.
        spec: of stage segment; the weights' metadata keep it.
        classes: names by index.
        seed: of the run.
        averaged: the moving average of the weights.

    Raises:
        OutputError: a file cannot be written.
    """
    document = {"task": SEGMENTATION_TASK} | _READER.dump_python(
        SegmenterConfig(
            architecture=spec["model"]["architecture"], settings=dict(spec["model"]["settings"]), image_px=model.image_px,
            num_classes=model.num_classes, classes=tuple(classes), head=model.head_settings, mean=three(model.mean),
            std=three(model.std), short_side_px=spec["recipe"]["short_side_px"], crop_px=spec["recipe"]["crop_px"],
        ),
        mode="json",
    )  # fmt: skip
    write_json(folder / CONFIG_FILE, document)
    metadata = {"task": SEGMENTATION_TASK, "spec": json.dumps(spec), "seed": str(seed)}
    save_weights(model, folder / WEIGHTS_FILE, metadata)
    if averaged is not None:
        save_weights(averaged, folder / AVERAGED_FILE, metadata)


def load_segmenter(path: str | Path, *, use_ema: bool = True) -> LoadedSegmenter:
    """Builds the segmenter that a folder describes, with its weights.

    Args:
        path: a run's seed folder, or a weights file in one.
        use_ema: take the averaged weights where there are both.

    Raises:
        CheckpointError: missing, damaged, of a classifier, or weights that do not fit their description.
        ConfigError: a setting that this version does not take.
    """
    file = checkpoint_file(path, use_ema=use_ema)
    config = read_segmenter_config(file.parent)
    checkpoint = read_checkpoint(file, use_ema=use_ema)
    model = config.create()
    refuse_mismatch(checkpoint.where, checkpoint.state, model.state_dict())
    model.load_state_dict(checkpoint.state)
    return LoadedSegmenter(model.eval(), config.classes, config, checkpoint.averaged)


def read_segmenter_config(folder: Path) -> SegmenterConfig:
    """Reads config.json.

    Raises:
        CheckpointError: it is missing, damaged or describes no segmenter.
    """
    path = folder / CONFIG_FILE
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; it says which segmenter the weights beside it belong to."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Train or copy the folder again.") from None
    if not isinstance(document, dict) or document.get("task") != SEGMENTATION_TASK:
        raise CheckpointError(
            f'{path}: of a classifier (no "task": "{SEGMENTATION_TASK}"); expected a segmenter, as `tokenlabel segment` writes it.'
        )
    try:
        config = _READER.validate_python({key: value for key, value in document.items() if key != "task"})
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}. Train or copy the folder again."
        ) from None
    if len(config.classes) != config.num_classes:
        raise CheckpointError(f"{path}: {len(config.classes)} classes are named, num_classes is {config.num_classes}")
    return config


_READER = TypeAdapter(SegmenterConfig)
