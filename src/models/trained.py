"""A trained model from what lies on disk: a run's folder, an exported folder, or a published checkpoint.

Called by evaluation, prediction, visualisation and export. What the model is stands in config.json; for a published file
it is recognised by the names and shapes of its weights, and the rest is timm's record of the architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.files import parse_json
from .checkpoints import LoadReport, classes_of_heads, load_checkpoint
from .model_config import (
    CONFIG_FILE,
    ModelConfig,
    describe_model,
    read_model_config,
    settings_of_spec,
    with_timm_record,
)
from .pretrained import is_efficientnet_pytorch, load_pretrained, rename_efficientnet_pytorch
from .registry import create_model, model_names
from .t2t import T2T_PRESETS
from .timm_backbones import TIMM_PREFIX
from .tokens import EVALUATION_CROP, TokenModel
from .weights import Checkpoint, checkpoint_file, read_checkpoint, read_metadata

_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and what is known of it.

    Attributes:
        classes: names to show, by index: the data set's folder names, or words where those are codes of ImageNet.
        config: what config.json says or, for a published file, would say.
        report: which weights were taken, and what was changed to fit.
    """

    model: TokenModel
    classes: tuple[str, ...]
    config: ModelConfig
    report: LoadReport


def load_model(
    path: str | Path,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    image_px: int | None = None,
    use_ema: bool = True,
) -> LoadedModel:
    """Builds the model that a checkpoint describes, with its weights.

    Args:
        path: a run's seed folder or an exported folder; a weights file in one; or a published .pth.tar, .pth or
            .safetensors file.
        architecture: of a published file, a name that `create_model` takes; None recognises LV-ViT and T2T-ViT.
        num_classes: another number initialises the heads anew.
        image_px: side of the images; positions are interpolated where it is not the checkpoint's own.
        use_ema: take the averaged weights where there are both.

    Raises:
        CheckpointError: missing, damaged, not recognised, or of another architecture than the given one.
        ConfigError: an unknown architecture, or a size that it does not take.
    """
    file = checkpoint_file(path, use_ema=use_ema)
    checkpoint = read_checkpoint(file, use_ema=use_ema)
    if is_efficientnet_pytorch(checkpoint.state):
        checkpoint = replace(checkpoint, state=rename_efficientnet_pytorch(dict(checkpoint.state)))
    config = own = _own_config(file, architecture)
    if config is None:
        config = _published_config(checkpoint, architecture, image_px)
        if (file.parent / CONFIG_FILE).is_file():
            config = with_timm_record(config, file.parent)
    elif architecture not in (None, config.architecture):
        raise CheckpointError(
            f"checkpoint {file}: its {CONFIG_FILE} says {config.architecture}, asked for was {architecture}. Leave the "
            "architecture out."
        )
    adapted = num_classes not in (None, config.num_classes)
    if num_classes is not None and adapted:
        names = tuple(str(index) for index in range(num_classes))
        config = replace(config, num_classes=num_classes, classes=names, descriptions={})
    if image_px is not None:
        config = replace(config, image_px=image_px)
    model = config.create()
    # a published plain classifier lacks the token head; a file of ours lacks nothing
    report = load_checkpoint(model, checkpoint, reset_heads=adapted or own is None)
    return LoadedModel(model.eval(), _names_to_show(config), config, report)


def load_published(source: dict[str, Any], weights_root: Path, image_px: int, *, use_ema: bool) -> LoadedModel:
    """Builds the model of a published checkpoint that the configuration names.

    Args:
        source: architecture, weights, weights_sha256, weights_naming, as `load_pretrained` takes them.
        weights_root: folder of `file:` weights.
        image_px: side of the images; positions are interpolated where it is not the checkpoint's own.
        use_ema: take the averaged weights of a file that holds both.

    Raises:
        CheckpointError: missing, damaged, not the stated digest, or of another architecture.
        ConfigError: a size that the architecture does not take.
    """
    weights = load_pretrained(source, weights_root, averaged=use_ema)
    checkpoint = Checkpoint(weights.origin, weights.state, averaged=weights.averaged)
    config = _published_config(checkpoint, source["architecture"], image_px)
    model = config.create()
    report = load_checkpoint(model, checkpoint)
    return LoadedModel(model.eval(), _names_to_show(config), config, report)


def _own_config(file: Path, architecture: str | None) -> ModelConfig | None:
    """The description beside or inside a file of ours; None for a published one."""
    if file.suffix != ".safetensors":
        return None
    metadata = read_metadata(file)
    if (file.parent / CONFIG_FILE).exists() or ("spec" in metadata and "classes" not in metadata):
        try:
            return read_model_config(file.parent)
        except CheckpointError:
            if architecture is None or "spec" in metadata:
                raise
            return None  # a folder of timm's hub, whose architecture the caller knows
    if "spec" not in metadata:
        return None
    try:  # a run from before runs had a config.json
        spec, classes = parse_json(metadata["spec"]), parse_json(metadata["classes"])
        if "recipe" not in spec:
            raise CheckpointError(f"checkpoint {file}: an annotator's weights, not those of a model with a token head.")
        architecture, settings = spec["model"]["architecture"], settings_of_spec(spec)
        with torch.device("meta"):
            model = create_model(architecture, spec["dataset"]["num_classes"], spec["image_px"], **settings)
        return describe_model(model, architecture, settings, classes, crop=EVALUATION_CROP)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"checkpoint {file}: its metadata describes no model of this package ({' '.join(str(error).split())[:200]}). Fetch "
            "or write it again."
        ) from None


def _published_config(checkpoint: Checkpoint, architecture: str | None, image_px: int | None) -> ModelConfig:
    if architecture is None:
        architecture = _recognise(checkpoint)
    native_px, crop, interpolation = _records(architecture)
    with torch.device("meta"):
        model = create_model(architecture, image_px=native_px)
        state = model.adapt_names(checkpoint.state)
        num_classes = classes_of_heads(model, state)
        if num_classes is None:
            raise CheckpointError(
                f"checkpoint {checkpoint.where}: no head ({', '.join(model.head_names)}) for {architecture}, so its number "
                "of classes is unknown. Make the model with create_model and use load_checkpoint."
            )
        settings: dict[str, Any] = {}
        if f"{model.head_names[-1]}.weight" not in state:
            settings["token_score_weight"] = 0.0  # a token head drawn at random must have no say
            if architecture in T2T_PRESETS:
                settings["attention_scale"] = T2T_PRESETS[architecture]["width"] ** -0.5  # as its authors trained it
        side = _image_px(model, state) if image_px is None else image_px
        model = create_model(architecture, num_classes, side, **settings)
    classes, descriptions = _imagenet_names() if num_classes == 1000 else ([str(i) for i in range(num_classes)], {})
    return describe_model(
        model, architecture, settings, classes, crop=crop, interpolation=interpolation, descriptions=descriptions
    )


def _recognise(checkpoint: Checkpoint) -> str:
    """The preset whose weights have these names and shapes; heads and positions depend on the data and do not count."""

    def body(model: TokenModel, state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        ignored = (*(f"{head}." for head in model.head_names), model.position_name, "num_batches_tracked")
        return {
            name: value.shape for name, value in state.items()
            if not name.startswith(ignored) and not name.endswith(ignored)
        }  # fmt: skip

    for name in model_names():
        with torch.device("meta"):
            model = create_model(name)
        if body(model, model.state_dict()) == body(model, checkpoint.state):
            return name
    raise CheckpointError(
        f"checkpoint {checkpoint.where}: no {CONFIG_FILE} beside it, and its weights fit none of {', '.join(model_names())}. "
        f"Give the architecture, e.g. {TIMM_PREFIX}deit_small_patch16_224."
    )


def _image_px(model: TokenModel, state: Mapping[str, Tensor]) -> int:
    """Side of the images by the number of positions; the architecture's own where it has none."""
    positions = state.get(model.position_name)
    if positions is None or positions.ndim != 3:
        return model.image_px
    rows, cols = model.grid
    prefix = model.state_dict()[model.position_name].shape[1] - rows * cols
    return math.isqrt(positions.shape[1] - prefix) * model.image_px // rows


def _records(architecture: str) -> tuple[int, float, Any]:
    """Side, crop and interpolation that timm's registry states for an architecture."""
    import timm

    cfg = timm.get_pretrained_cfg(architecture.removeprefix(TIMM_PREFIX))
    if cfg is None:
        return 224, EVALUATION_CROP, "bicubic"
    interpolation = cfg.interpolation if cfg.interpolation in ("bilinear", "bicubic") else "bicubic"
    return cfg.input_size[-1], cfg.crop_pct, interpolation


def _imagenet_names() -> tuple[list[str], dict[str, str]]:
    """WordNet ids of ImageNet's classes in their usual order, and id -> words."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return info.label_names(), info.label_descriptions(as_dict=True)


def _names_to_show(config: ModelConfig) -> tuple[str, ...]:
    """The first of a class's words; with its id where two classes share that word, as ImageNet's two cranes do."""
    descriptions = config.descriptions
    if not descriptions and all(_WORDNET_ID.fullmatch(name) for name in config.classes):
        descriptions = _imagenet_names()[1]
    words = [descriptions.get(name, name).split(",")[0] for name in config.classes]
    return tuple(
        f"{word} ({name})" if words.count(word) > 1 else word for word, name in zip(words, config.classes, strict=True)
    )
