"""Which names timm knows; asked before timm is, so that a wrong name ends in one line with the nearest legal ones.

Called by `registry` and `timm_backbones`. Names of this package that are registered with timm are not timm's.
"""

from __future__ import annotations

import difflib
import importlib.util

from ..core.errors import ConfigError

TIMM_PREFIX = "timm/"
REGISTERED_IN = "timm_registry"  # timm's name for the module where ours are registered
NEAREST = 3  # names that an error shows


def is_timm_name(name: str) -> bool:
    """Whether timm, if installed, has this architecture; a weights tag after a dot is ignored."""
    if importlib.util.find_spec("timm") is None:
        return False
    import timm

    return bool(timm.is_model(name)) and not timm.models.is_model_in_modules(name.split(".")[0], [REGISTERED_IN])


def nearest_timm_names(name: str) -> list[str]:
    """Timm's architectures that are spelt nearly so, with the prefix "timm/", best first."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    names = [known for known in timm.list_models() if is_timm_name(known)]
    return [TIMM_PREFIX + near for near in difflib.get_close_matches(name.split(".")[0], names, n=NEAREST)]


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
        near = nearest_timm_names(name)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() lists all."
        raise ConfigError(f"unknown model {TIMM_PREFIX + name!r}: timm {timm.__version__} has none such. {hint}")
    tagged = timm.list_models(architecture, include_tags=True)
    if tag and name not in tagged:
        tags = ", ".join(known.partition(".")[2] for known in tagged if "." in known) or "(none)"
        raise ConfigError(f"unknown weights tag {tag!r} of {TIMM_PREFIX}{architecture}. Legal: {tags}")
