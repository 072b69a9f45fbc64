"""config.json beside weights: what the model is, what its classes are called and how photographs become its input.

The one source of these facts for every reader; the weights file itself keeps provenance only. The layout is that of timm's
hub files, so that `timm.create_model("local-dir:FOLDER")` reads the same folder. Written by training and export, read by
`trained`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from ..core.errors import CheckpointError
from ..core.files import read_json, write_json
from .registry import create_model, model_names
from .timm_backbones import TIMM_PREFIX
from .tokens import TokenModel

CONFIG_FILE = "config.json"
SEGMENTATION_TASK = "segmentation"  # what config.json of a segmenter says; see `segmentation`
TIMM_ENTRY = "token_model"  # timm's name for a backbone of its own with our token head; `backbone` says which

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says.

    Attributes:
        architecture: name that `create_model` takes.
        num_classes: classes of both heads.
        image_px: side of the square images.
        classes: what the classes are called, by index; folder names of the data set, so unique.
        crop: share of the shorter side that evaluation's centre crop keeps, in (0, 1].
        interpolation: of the resize before that crop.
        mean, std: per channel, of RGB in [0, 1].
        settings: what differs from the architecture's preset, token_score_weight always.
        descriptions: words for a class name that is a code, such as ImageNet's.
        heads, num_features: sub-modules that depend on num_classes and the channels they take; for timm's reader.
    """

    architecture: str
    num_classes: Annotated[int, Field(ge=1)]
    image_px: Annotated[int, Field(ge=1)]
    classes: tuple[str, ...]
    crop: Annotated[float, Field(gt=0, le=1)]
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[_Positive, _Positive, _Positive]
    settings: dict[str, Any]
    descriptions: dict[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    num_features: int = 0

    def create(self) -> TokenModel:
        """The model in random weights, in training mode.

        Raises:
            ConfigError: a setting that this version does not take.
        """
        model = create_model(self.architecture, self.num_classes, self.image_px, **self.settings)
        model.mean, model.std = self.mean, self.std
        model.describe_input()
        return model

    def document(self) -> dict[str, Any]:
        """The JSON object, in timm's layout."""
        architecture, arguments = self.architecture, {"img_size": self.image_px, **self.settings}
        if architecture.startswith(TIMM_PREFIX):
            arguments = {"backbone": architecture.removeprefix(TIMM_PREFIX), **arguments}
            architecture = TIMM_ENTRY
        return {
            "architecture": architecture,
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "label_names": list(self.classes),
            **({"label_descriptions": self.descriptions} if self.descriptions else {}),
            "model_args": arguments,
            "pretrained_cfg": {
                "input_size": [3, self.image_px, self.image_px],
                "fixed_input_size": True,
                "interpolation": self.interpolation,
                "crop_pct": self.crop,
                "crop_mode": "center",
                "mean": list(self.mean),
                "std": list(self.std),
                "classifier": list(self.heads),
            },
        }


def describe_model(
    model: TokenModel, architecture: str, settings: Mapping[str, Any], classes: Sequence[str], *,
    crop: float, interpolation: Interpolation = "bicubic", descriptions: Mapping[str, str] | None = None,
) -> ModelConfig:  # fmt: skip
    """What config.json says of a model that was made with `create_model(architecture, ..., **settings)`."""
    return ModelConfig(
        architecture=architecture,
        num_classes=model.num_classes,
        image_px=model.image_px,
        classes=tuple(classes),
        crop=crop,
        interpolation=interpolation,
        mean=three(model.mean),
        std=three(model.std),
        # the rate of stochastic depth belongs to a training, not to the weights
        settings={key: value for key, value in settings.items() if key != "stochastic_depth"}
        | {"token_score_weight": model.token_score_weight},
        descriptions=dict(descriptions or {}),
        heads=model.head_names,
        num_features=model.state_dict()[f"{model.head_names[-1]}.weight"].shape[1],
    )


def learns_tokens(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe's loss reads the token head."""
    return bool(recipe["supervision"] == "token" and recipe["token_weight"] > 0)


def settings_of_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's model.

    A run without token loss leaves its token head untrained, so the head has no say in the class logits there; with it,
    half of the best token logit is added, as the released code does.

    Args:
        spec: of stage train or finetune.
    """
    recipe, settings = spec["recipe"], dict(spec["model"]["settings"])
    if not learns_tokens(recipe):
        settings["token_score_weight"] = 0.0
    return _with_tuples(settings)


def write_model_config(folder: Path, config: ModelConfig) -> None:
    """Writes config.json, atomically."""
    write_json(folder / CONFIG_FILE, config.document())


def read_model_config(folder: Path) -> ModelConfig:
    """Reads config.json.

    Raises:
        CheckpointError: it is missing, damaged or describes no model of this package.
    """
    path = folder / CONFIG_FILE
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; it says which model the weights beside it belong to.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Fetch or write the folder again.") from None
    try:
        return _parse(document)
    except KeyError as error:
        reason = f"lacks {error}"
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (TypeError, ValueError) as error:
        reason = str(error)
    raise CheckpointError(
        f"{path}: describes no model of this package ({reason}). Expected one that training or `tokenlabel export` wrote."
    )


def with_timm_record(config: ModelConfig, folder: Path) -> ModelConfig:
    """A published file's description with the class names and the preprocessing of timm's config.json beside it.

    Raises:
        CheckpointError: it is damaged or contradicts the weights.
    """
    path = folder / CONFIG_FILE
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}). Fetch the folder again, or take the weights out of it."
        ) from None
    name = config.architecture.removeprefix(TIMM_PREFIX).partition(".")[0]
    if not isinstance(document, dict) or document.get("architecture") != name:
        return config  # of something else that lies there
    cfg = document.get("pretrained_cfg") or {}
    found = {"classes": document.get("label_names"), "descriptions": document.get("label_descriptions")}
    found |= {"crop": cfg.get("crop_pct"), "mean": cfg.get("mean"), "std": cfg.get("std")}
    if cfg.get("interpolation") in get_args(Interpolation):
        found["interpolation"] = cfg["interpolation"]
    try:
        known = {item.name: getattr(config, item.name) for item in fields(config)}
        described = _READER.validate_python(known | {key: value for key, value in found.items() if value})
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if len(described.classes) != config.num_classes:
        raise CheckpointError(f"{path}: {len(described.classes)} label_names for {config.num_classes} classes")
    return described


def _parse(document: Any) -> ModelConfig:
    if not isinstance(document, dict):
        raise TypeError(f"expected a JSON object, found {type(document).__name__}")
    if document.get("task") == SEGMENTATION_TASK:
        raise ValueError("it is a segmenter's, whose backbone has no classes; load_segmenter reads it")
    architecture, settings, cfg = document["architecture"], dict(document["model_args"]), document["pretrained_cfg"]
    if architecture == TIMM_ENTRY:
        architecture = TIMM_PREFIX + settings.pop("backbone")
    elif architecture not in model_names():
        raise ValueError(
            f"architecture {architecture!r}, legal are {', '.join([*model_names(), TIMM_ENTRY])}; a folder of timm's own is "
            f"read as architecture {TIMM_PREFIX}{architecture}"
        )
    config = _READER.validate_python(
        {
            "architecture": architecture,
            "num_classes": document["num_classes"],
            "image_px": settings.pop("img_size"),
            "classes": document["label_names"],
            "descriptions": document.get("label_descriptions", {}),
            "crop": cfg["crop_pct"],
            "interpolation": cfg["interpolation"],
            "mean": cfg["mean"],
            "std": cfg["std"],
            "settings": _with_tuples(settings),
            "heads": cfg["classifier"],
            "num_features": document["num_features"],
        }
    )
    if len(config.classes) != config.num_classes:
        raise ValueError(f"{len(config.classes)} label_names for {config.num_classes} classes")
    return config


def _with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where settings are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def three(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Three values as a type checker believes them."""
    red, green, blue = values
    return red, green, blue


_READER = TypeAdapter(ModelConfig)
