"""Registers this package's models with timm, so that `timm.create_model("lvvit_s")` and timm's own scripts know them.

Imported with `tokenlabel.models` where timm is installed. Besides the fixed names there is `token_model`: a timm
backbone with our token head (`backbone="deit_small_patch16_224"`). Takes timm's arguments and hands them on to
`create_model`; weights come from a folder ("local-dir:FOLDER") or checkpoint_path, never from the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from ..core.errors import ConfigError
from .checkpoints import fit_positions
from .model_config import TIMM_ENTRY
from .registry import EVALUATION_CROPS, create_model, model_names
from .timm_backbones import classifier_names
from .timm_names import TIMM_PREFIX, check_timm_name
from .tokens import EVALUATION_CROP, IMAGENET_MEAN, IMAGENET_STD, TokenModel

SIDES_PX = {"lvvit_l": 288}  # as in config.yaml, the released model's own
DEFAULT_PX = 224


def _config(name: str) -> dict[str, Any]:
    side = SIDES_PX.get(name, DEFAULT_PX)
    return {
        "input_size": (3, side, side),
        "fixed_input_size": True,
        "crop_pct": EVALUATION_CROPS.get(name, EVALUATION_CROP),
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": None if name.startswith("t2t") else "patch_embed.conv1",
        "classifier": TokenModel.head_names,
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: _config(name) for name in model_names()})


def token_model(
    pretrained: bool = False,
    *,
    backbone: str = "",
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> TokenModel:
    """A timm backbone with a token head, as `create_model("timm/<backbone>")` makes it.

    Args:
        pretrained: load the weights of a folder.
        backbone: timm's name of it.
        pretrained_cfg: timm's record of weights and preprocessing; None for the backbone's own, without its weights.
        pretrained_cfg_overlay: changes to it.
        **arguments: as timm's entry points take them, and the settings of `TimmTokenModel`.

    Raises:
        ConfigError: no such backbone, or a setting that does not fit.
    """
    if not backbone:
        raise ConfigError(f"{TIMM_ENTRY} needs the name of its backbone, e.g. backbone='deit_small_patch16_224'")
    check_timm_name(backbone)
    own = timm.get_pretrained_cfg(backbone).to_dict(remove_source=True)
    overlay = {
        "architecture": TIMM_ENTRY,
        "classifier": (*(f"backbone.{name}" for name in classifier_names(own)), "token_head"),
        "first_conv": None,  # only 3 channels are taken, so it is never adapted
        "fixed_input_size": True,  # a TokenModel takes one size
        "test_input_size": None,
        **(pretrained_cfg_overlay or {}),
    }
    return _build(
        TIMM_ENTRY,
        TIMM_PREFIX + backbone,
        pretrained,
        pretrained_cfg=pretrained_cfg or own,
        pretrained_cfg_overlay=overlay,
        **arguments,
    )


def _entry(name: str) -> Any:
    """Timm's entry point of one of our names; timm reads the name from the function."""

    def entry(pretrained: bool = False, **arguments: Any) -> TokenModel:
        return _build(name, name, pretrained, **arguments)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name} of tokenlabel; takes timm's arguments and the model's settings."
    return entry


def _build(variant: str, architecture: str, pretrained: bool, **arguments: Any) -> TokenModel:
    """Lets timm resolve its record and load weights around our constructor."""

    def construct(
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = DEFAULT_PX,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "",
        **settings: Any,
    ) -> TokenModel:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height != width:
            raise ConfigError(f"{variant}: img_size is {height} x {width}; a token model takes square images")
        if in_chans != 3:
            raise ConfigError(f"{variant}: in_chans is {in_chans}; a token model takes 3 channels, RGB")
        if drop_rate:
            raise ConfigError(f"{variant}: drop_rate is {drop_rate}; the heads have no dropout. Leave it 0.")
        if global_pool not in ("", "token"):
            raise ConfigError(
                f"{variant}: global_pool is {global_pool!r}; the model's own pooling stays. Leave it out."
            )
        if drop_path_rate:
            settings["stochastic_depth"] = drop_path_rate
        return create_model(architecture, num_classes, height, **settings)

    if arguments.get("features_only"):
        raise ConfigError(
            f"{variant}: features_only is not offered. Use forward_features or forward_tokens of the model."
        )
    sources: dict[str, Any] = {}
    for record in (arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay")):
        sources |= record if isinstance(record, Mapping) else {}
    if pretrained and not (sources.get("file") or sources.get("state_dict")):
        raise ConfigError(
            f"{variant} has no weights of its own. Use timm.create_model('local-dir:FOLDER', pretrained=True) or "
            "checkpoint_path=FILE."
        )
    model: TokenModel = build_model_with_cfg(
        construct, variant, pretrained, pretrained_filter_fn=_fit_state, **arguments
    )
    cfg: Any = model.pretrained_cfg
    model.mean, model.std = tuple(cfg["mean"]), tuple(cfg["std"])
    model.describe_input()
    return model


def _fit_state(state: Mapping[str, Tensor], model: TokenModel) -> dict[str, Tensor]:
    """Our names and, where the folder was written for another image size, interpolated positions."""
    return fit_positions(model, model.adapt_names(state), model.state_dict())[0]


default_cfgs.update(generate_default_cfgs({TIMM_ENTRY: {**_config(TIMM_ENTRY), "first_conv": None}}))
register_model(token_model)
for _name in model_names():
    globals()[_name] = register_model(_entry(_name))
