"""Which models there are and which settings each takes; called wherever a model is made from its name.

An unknown name or setting is refused with the nearest legal ones. Defaults live in the presets, never here.
"""

from __future__ import annotations

import difflib
import math
from numbers import Integral, Real
from typing import Any

from ..core.errors import ConfigError, unknown_name
from ..data.timm_names import is_timm_name
from .lvvit import LVVIT_PRESETS, LVViT
from .t2t import T2T_PRESETS, T2TViT
from .timm_backbones import TIMM_SETTINGS, TimmTokenModel
from .timm_names import TIMM_PREFIX, quote_nearest
from .tokens import EVALUATION_CROP, TokenModel


def model_names() -> list[str]:
    """Names that `create_model` takes, besides "timm/<name>"."""
    return [*LVVIT_PRESETS, *T2T_PRESETS]


EVALUATION_CROPS = {"lvvit_m": 1.0, "lvvit_l": 1.0}  # released models' own, as in config.yaml


def create_model(name: str, num_classes: int = 1000, image_px: int = 224, **settings: Any) -> TokenModel:
    """Makes a model with random weights, in training mode.

    Args:
        name: one of `model_names()`, or "timm/" and any timm classifier with tokens or a feature map.
        num_classes: classes of the class head and the token head.
        image_px: side of the square images it will be given.
        **settings: change the preset: the keyword arguments of `LVViT`, `T2TViT` or `TimmTokenModel`.

    Raises:
        ConfigError: unknown name or setting, or a value that does not fit.
    """
    if not isinstance(name, str):  # of a document by hand
        raise ConfigError(
            f"model {name!r}: a model's name is a string. Legal: {', '.join(model_names())}, {TIMM_PREFIX}<name>"
        )
    for what, value in (("num_classes", num_classes), ("image_px", image_px)):
        if not _like(value, 1):
            raise ConfigError(f"model {name}: {what} is {value!r}; it must be an integer")
    if name in LVVIT_PRESETS:
        model = LVViT(num_classes, image_px, **_merge(name, LVVIT_PRESETS[name], settings))
        model.pretrained_cfg["crop_pct"] = EVALUATION_CROPS.get(name, EVALUATION_CROP)
        return model
    if name in T2T_PRESETS:
        return T2TViT(num_classes, image_px, **_merge(name, T2T_PRESETS[name], settings))
    if name.startswith(TIMM_PREFIX):
        merged = _merge(name, TIMM_SETTINGS, settings)
        return TimmTokenModel(name.removeprefix(TIMM_PREFIX), num_classes, image_px, **merged)
    raise _unknown_model(name)


def _unknown_model(name: str) -> ConfigError:
    if is_timm_name(name):
        return ConfigError(f"unknown model {name!r}: it is one of timm's. Write {TIMM_PREFIX + name!r}.")
    near = " or ".join(map(repr, difflib.get_close_matches(name, model_names()))) or quote_nearest(name)
    hint = f" Did you mean {near}?" if near else ""
    return ConfigError(f"unknown model {name!r}.{hint} Legal: {', '.join(model_names())}, {TIMM_PREFIX}<name>")


def _merge(name: str, preset: Any, settings: dict[str, Any]) -> dict[str, Any]:
    for setting, value in settings.items():
        if setting not in preset:
            raise unknown_name("setting", setting, preset, where=f"model {name}")
        if not _like(value, preset[setting]):
            raise ConfigError(
                f"model {name}: {setting} is {value!r}; expected a value like the preset's, {preset[setting]!r}"
            )
    return {**preset, **settings}


def _like(value: Any, example: Any) -> bool:
    """Whether a setting is of the kind that its preset is; ranges are the model's own business."""
    if isinstance(example, tuple):
        return isinstance(value, (tuple, list)) and all(_like(item, 1) for item in value)
    if isinstance(example, str):
        return isinstance(value, str)
    if isinstance(example, int):
        return isinstance(value, Integral) and not isinstance(value, bool)
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return is_number or (example is None and value is None)
