"""Whether stored labels are in the manifest's class order: how often a photograph's own class is among its map's top 5.

Needs neither the annotator nor the photographs. Called by `tokenlabel annotate check --classes-only`.
Where the order is wrong, known other orders are tried and the one that fits is named. Source: ours; a permuted order gave
users of the released labels a validation accuracy of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import LabelError
from ..data.manifest import Manifest
from ..labels import LabelStore
from ..labels.class_order import hits, other_orders, pooled_top
from ..labels.records import STATUS_OK

_DEVIATIONS = 3.0  # a share counts as above another where it is so many standard errors higher
_HARDLY_EVER = 0.1  # share of a class's photographs that show it
_UNLIKELY = 0.01  # expected number of classes that are so by chance
_CONSISTENT = 0.5  # share of photographs whose pooled top-1 is their class's commonest other answer


@dataclass(frozen=True)
class ClassOrder:
    """What the check found.

    Attributes:
        images: photographs compared.
        any_cell: share of photographs whose class is among the stored classes of some cell.
        pooled: share whose class is among the five heaviest of the pooled map.
        chance: share `pooled` would reach were classes drawn at random.
        shuffled: the same with the photographs' own classes dealt out anew.
        fits: share `pooled` under each other class order that was tried.
        verdict: one line.
        matches: whether the labels are in the manifest's order.
    """

    images: int
    any_cell: float
    pooled: float
    chance: float
    shuffled: float
    fits: dict[str, float]
    verdict: str
    matches: bool


def check_class_order(store: LabelStore, manifest: Manifest, images: int, seed: int) -> ClassOrder:
    """Compares a seeded sample of labels with the manifest's classes.

    Args:
        store: the labels.
        manifest: of the same split.
        images: how many photographs at most.
        seed: of the sample.

    Raises:
        LabelError: no usable label for the manifest's photographs, or a class that the annotator does not know.
    """
    rows = sample_rows(store, manifest, images, seed)
    own = manifest.class_index[rows].astype(np.int64)
    if own.max() >= store.num_classes:
        raise LabelError(
            f"labels {store.path}: {store.num_classes} classes, but the manifest has class {own.max()}. Give the manifest "
            "that the labels were made from."
        )
    labels = store.get_many(manifest.sample_id[rows])
    top = pooled_top(labels, store.num_classes)
    any_cell = (labels.classes.reshape(len(rows), -1) == own[:, None]).any(1)
    share = hits(top, own)
    generator = np.random.default_rng(seed)
    shuffled = float(np.mean([hits(top, generator.permutation(own)) for _ in range(20)]))
    chance = float((top >= 0).sum(1).mean() / store.num_classes)
    fits = {
        name: hits(top, mapping[own]) for name, mapping in other_orders(manifest.classes, store.num_classes).items()
    }
    verdict, matches = _verdict(
        share, max(chance, shuffled if len(set(own.tolist())) > 1 else 0.0), fits, top[:, 0], own
    )
    if matches and (odd := _odd_classes(top, own, share)):
        said = [
            f"{manifest.classes[index]} (labeled as {_name(manifest.classes, answer)})" for index, answer in odd[:5]
        ]
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        verdict = f"does not match: {len(odd)} classes are hardly ever in their own photographs' maps: "
        verdict += ", ".join(said) + more + "; the rest fits, so most likely these were exchanged or mixed up"
        matches = False
    return ClassOrder(len(rows), float(any_cell.mean()), share, chance, shuffled, fits, verdict, matches)


def sample_rows(store: LabelStore, manifest: Manifest, images: int, seed: int) -> NDArray[np.int64]:
    """Rows of the manifest, sorted: a seeded sample of the photographs that have a usable label.

    Raises:
        LabelError: none has, or a photograph of the manifest is not in the store.
    """
    usable = np.flatnonzero(store.status_of(manifest.sample_id) == STATUS_OK)
    if not len(usable):
        raise LabelError(
            f"labels {store.path}: none of {len(manifest)} photographs has a usable label. Look at unreadable.csv beside the "
            "shards, mend the photographs and run snakemake labels."
        )
    return np.sort(np.random.default_rng(seed).permutation(usable)[:images])


def _verdict(
    share: float, chance: float, fits: dict[str, float], first: NDArray[np.int64], own: NDArray[np.int64]
) -> tuple[str, bool]:
    best = max(fits, key=lambda name: fits[name])
    error = np.sqrt(max(share, fits[best], chance) * (1 - min(share, chance)) / len(own))
    if fits[best] > share + _DEVIATIONS * error:
        return f"does not match: the labels fit another class order: {best}", False
    if share > chance + _DEVIATIONS * error:
        return "matches: the labels are in the manifest's class order", True
    if _consistency(first, own) > _CONSISTENT:
        return "does not match: each class has one consistent other number, an order that is none of those tried", False
    return "does not match: no class order explains the labels; most likely other weights or other preprocessing", False


def _odd_classes(top: NDArray[np.int64], own: NDArray[np.int64], share: float) -> list[tuple[int, int]]:
    """Classes that hardly any of their photographs show, most being labeled as one other; too many to be chance.

    Returns:
        each with the commonest top-1 of its photographs.
    """
    hits = (top == own[:, None]).any(1)
    present = np.unique(own)
    found = []
    for index in present:
        of_class = own == index
        count, hit = int(of_class.sum()), int(hits[of_class].sum())
        if hit > _HARDLY_EVER * count:
            continue
        chance = sum(math.comb(count, n) * share**n * (1 - share) ** (count - n) for n in range(hit + 1))
        answers = np.bincount(top[of_class, 0])
        # a hard class is taken for many others
        if chance * len(present) <= _UNLIKELY and answers.max() >= _CONSISTENT * count:
            found.append((int(index), int(answers.argmax())))
    return found


def _name(classes: Sequence[str], index: int) -> str:
    return classes[index] if index < len(classes) else f"class {index}"


def _consistency(first: NDArray[np.int64], own: NDArray[np.int64]) -> float:
    """Share of photographs whose top-1 is the commonest among the *other* photographs of their class."""
    agreeing = compared = 0
    for index in np.unique(own):
        answers = first[own == index]
        for place in range(len(answers) if len(answers) > 2 else 0):
            others = np.bincount(np.delete(answers, place))
            agreeing += int(others.argmax() == answers[place])
            compared += 1
    return agreeing / compared if compared else 0.0
