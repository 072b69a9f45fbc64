"""The label contract: score maps on disk, their geometry, the targets made of them and the token loss.

Public names load on first use, so reading labels needs numpy and h5py only and never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses import token_cross_entropy
    from .store import LabelStore
    from .targets import (
        SparseTargets,
        blended_target,
        one_hot_targets,
        participation_mask,
        pooled_target,
        sparse_targets,
    )

__all__ = [
    "LabelStore",
    "SparseTargets",
    "blended_target",
    "one_hot_targets",
    "participation_mask",
    "pooled_target",
    "sparse_targets",
    "token_cross_entropy",
]

_MODULE_OF = {
    "LabelStore": "store",
    "SparseTargets": "targets",
    "blended_target": "targets",
    "one_hot_targets": "targets",
    "participation_mask": "targets",
    "pooled_target": "targets",
    "sparse_targets": "targets",
    "token_cross_entropy": "losses",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
