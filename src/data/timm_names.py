"""Which architectures timm has: asked by a study's first job, by every annotator and by the model registry.

Here and not in the planner, which never loads timm. This package's own models, which timm knows too once
`tokenlabel.models` is imported, are not timm's.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable

from ..core.errors import unknown_name

REGISTERED_IN = "timm_registry"  # timm's word for the module that registers our models
NEAREST = 8


def is_timm_name(name: str) -> bool:
    """Whether timm, if installed, has this architecture; a weights tag after a dot is ignored."""
    if importlib.util.find_spec("timm") is None:
        return False
    import timm

    return bool(timm.is_model(name)) and not timm.models.is_model_in_modules(name.split(".")[0], [REGISTERED_IN])


def nearest_timm_names(name: str, count: int = NEAREST, cutoff: float = 0.6) -> list[str]:
    """Timm's architectures that are spelt nearly so, best first; none where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    names = [known for known in timm.list_models() if is_timm_name(known)]
    return difflib.get_close_matches(name.split(".")[0], names, n=count, cutoff=cutoff)


def check_timm_names(names: Iterable[str]) -> None:
    """Refuses a study that names an architecture timm does not have, in its first job instead of its last.

    Raises:
        ConfigError: the first unknown name, with near ones.
    """
    for name in names:
        if not is_timm_name(name):
            near = nearest_timm_names(name, cutoff=0.4)
            raise unknown_name("timm architecture", name, near, "configuration keys annotators and models")
