"""Which head labels which photograph where an annotator was adapted in folds: one that has not seen it.

A photograph's fold derives from its group's id when the heads are fitted, and is kept with them: a manifest that changes later
moves none. Near-duplicates share a group, and so a fold, where the manifest looked for them (it does for a drawn validation split).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.seeds import derived_seed
from ..data.manifest import Manifest
from .dense import Annotator


def fold_of(group_ids: Sequence[int], folds: int) -> torch.Tensor:
    """Fold of each photograph.

    Args:
        group_ids: `Manifest.group_id` of photographs.
        folds: how many there are.

    Returns:
        int64 (photographs,), 0 to folds - 1.
    """
    return torch.tensor([derived_seed("fold", int(group)) % folds for group in group_ids], dtype=torch.long)


def folds_of_rows(manifest: Manifest, assigned: dict[int, int], folds: int) -> torch.Tensor:
    """Head that labels each photograph of a manifest.

    Args:
        manifest: of the split that the heads were fitted to, as it is now.
        assigned: sample id -> fold, as it was when they were fitted; a photograph that was added later has none, and takes
            that of a near-duplicate.
        folds: how many heads there are.

    Returns:
        int64 (photographs,).
    """
    of_group: dict[int, int] = {}
    pairs = list(zip(manifest.sample_id.tolist(), manifest.group_id.tolist(), strict=True))
    for identifier, group in pairs:
        if identifier in assigned:
            of_group.setdefault(group, assigned[identifier])
    anew = fold_of([group for _, group in pairs], folds).tolist()
    return torch.tensor(
        [assigned.get(i, of_group.get(g, f)) for (i, g), f in zip(pairs, anew, strict=True)], dtype=torch.long
    )


def heads_of_rows(manifest: Manifest, annotator: Annotator) -> torch.Tensor | None:
    """Head that labels each photograph of a manifest, int64 (photographs,); None where one head labels all.

    Photographs that no head was fitted to, those of other splits than train, are labeled by the one head.
    """
    if not annotator.folds or manifest.split != "train":
        return None
    return folds_of_rows(manifest, annotator.fold_of_sample, annotator.folds)
