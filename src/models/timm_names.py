"""Whether timm can make what "timm/<name>" asks for, so that a wrong name ends in one line with the nearest legal ones.

Called by `timm_backbones` and `timm_registry` before timm is.
"""

from __future__ import annotations

from ..core.errors import ConfigError
from ..data.timm_names import REGISTERED_IN, is_timm_name, nearest_timm_names

TIMM_PREFIX = "timm/"


def quote_nearest(name: str) -> str:
    """Up to three near names of timm's as `create_model` takes them, e.g. "'timm/resnet18' or 'timm/resnet10t'"."""
    return " or ".join(repr(TIMM_PREFIX + near) for near in nearest_timm_names(name, 3))


def check_timm_name(name: str) -> None:
    """Refuses what timm cannot make.

    Args:
        name: without the prefix "timm/", with or without a weights tag.

    Raises:
        ConfigError: timm is missing, or has no such architecture or tag.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model {TIMM_PREFIX}{name} needs timm: pip install 'tokenlabel[study]'") from None
    architecture, _, tag = name.partition(".")
    if timm.models.is_model_in_modules(architecture, [REGISTERED_IN]):
        raise ConfigError(f"{TIMM_PREFIX}{name}: {architecture} is this package's own model. Write {architecture!r}.")
    if not is_timm_name(name):
        near = quote_nearest(name)
        hint = f"Did you mean {near}?" if near else "timm.list_models() lists all."
        raise ConfigError(f"unknown model {TIMM_PREFIX + name!r}: timm {timm.__version__} has none such. {hint}")
    tagged = timm.list_models(architecture, include_tags=True)
    if tag and name not in tagged:
        tags = ", ".join(known.partition(".")[2] for known in tagged if "." in known) or "(none)"
        raise ConfigError(f"unknown weights tag {tag!r} of {TIMM_PREFIX}{architecture}. Legal: {tags}")
