"""The label contract: score maps on disk, their geometry, the targets made of them and the token loss.

Public names load on first use, so reading labels needs numpy and h5py only and never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import LabeledDataset, LabelMaps
    from .geometry import centre_crop_affine, compose, map_affine, view_affine
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
    from .views import AffineView, WithView

__all__ = [
    "AffineView",
    "LabelMaps",
    "LabelStore",
    "LabeledDataset",
    "SparseTargets",
    "WithView",
    "blended_target",
    "centre_crop_affine",
    "compose",
    "map_affine",
    "one_hot_targets",
    "participation_mask",
    "pooled_target",
    "sparse_targets",
    "token_cross_entropy",
    "view_affine",
]

_MODULE_OF = {
    "AffineView": "views",
    "LabelMaps": "dataset",
    "LabelStore": "store",
    "LabeledDataset": "dataset",
    "SparseTargets": "targets",
    "WithView": "views",
    "centre_crop_affine": "geometry",
    "compose": "geometry",
    "map_affine": "geometry",
    "blended_target": "targets",
    "one_hot_targets": "targets",
    "participation_mask": "targets",
    "pooled_target": "targets",
    "sparse_targets": "targets",
    "token_cross_entropy": "losses",
    "view_affine": "geometry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
