"""Which head labels which photograph where an annotator was adapted in folds: one that has not seen it.

The fold of a photograph derives from its group's id alone, so the job that fits heads and the jobs that label agree, and
near-duplicates, which share a group, are never on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.seeds import derived_seed


def fold_of(group_ids: Sequence[int], folds: int) -> torch.Tensor:
    """Fold of each photograph.

    Args:
        group_ids: `Manifest.group_id` of photographs.
        folds: how many there are.

    Returns:
        int64 (photographs,), 0 to folds - 1.
    """
    return torch.tensor([derived_seed("fold", int(group)) % folds for group in group_ids], dtype=torch.long)
