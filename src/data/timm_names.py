"""Whether timm has the architectures that a study names; asked by its first job and by every annotator.

Here and not in the planner, which never loads timm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..core.errors import unknown_name


def check_timm_names(names: Iterable[str]) -> None:
    """Refuses a study that names an architecture timm does not have, in its first job instead of its last.

    Raises:
        ConfigError: the first unknown name, with near ones.
    """
    import timm

    for name in names:
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.4)
            raise unknown_name("timm architecture", name, near, "configuration keys annotators and models")
