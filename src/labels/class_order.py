"""Whether labels are numbered as the folders are: a photograph's own class against its map's best classes.

Used by `tokenlabel annotate check --classes-only` and by the preflight of a training; needs the labels only. Source: ours; a
permuted order gave users of the released labels a validation accuracy of 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import LabelRows

TOP = 5
SIGNIFICANT = 4.0  # standard errors
_HARDLY_EVER = 0.1  # share of a class's photographs that show it best
_CONSISTENT = 0.5  # share of a class's photographs that are labeled as one other class
_FEWEST_OF_CLASS, _FEWEST = 3, 10  # photographs that prove anything, of a class and together


@dataclass(frozen=True)
class Confusion:
    """A class whose photographs are labeled as one other class: `count` of `photographs`."""

    own: int
    answer: int
    count: int
    photographs: int


def ranks_that_tell(num_classes: int) -> int:
    """How many of a map's best classes are looked at: 5, but fewer than half of all, so that chance does not always hit."""
    return max(1, min(TOP, (num_classes - 1) // 2))


def pooled_top(labels: LabelRows, num_classes: int) -> NDArray[np.int64]:
    """The heaviest classes of each map's mean softmax, int64 (images, `ranks_that_tell`), best first, -1 for none."""
    top = ranks_that_tell(num_classes)
    found = np.full((len(labels.classes), top), -1, dtype=np.int64)
    for image, (scores, classes) in enumerate(zip(labels.scores.astype(np.float32), labels.classes, strict=True)):
        mass = np.exp(scores - scores.max(-1, keepdims=True))
        mass /= mass.sum(-1, keepdims=True)
        vocabulary, place = np.unique(classes, return_inverse=True)
        best = np.argsort(-np.bincount(place.reshape(-1), weights=mass.reshape(-1)), kind="stable")[:top]
        found[image, : len(best)] = vocabulary[best]
    return found


def other_orders(classes: Sequence[str], num_classes: int) -> dict[str, NDArray[np.int64]]:
    """Class orders that labels are mistakenly made in: name -> the number that each class of the manifest has there."""
    own = np.arange(num_classes)
    orders = {
        "every class one too high (a background class first?)": (own + 1) % num_classes,
        "every class one too low (a background class removed?)": (own - 1) % num_classes,
        "reversed order": own[::-1].copy(),
    }
    if len(classes) == num_classes:
        orders["folders in natural order (2 before 10, as timm's readers sort)"] = _ranks(classes, _natural_key)
        orders["folders in lexicographic order (10 before 2, as torchvision sorts)"] = _ranks(
            classes, lambda name: [name]
        )
    return {name: mapping for name, mapping in orders.items() if not np.array_equal(mapping, own)}


def _natural_key(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def _ranks(classes: Sequence[str], key: object) -> NDArray[np.int64]:
    place = {name: rank for rank, name in enumerate(sorted(classes, key=key))}  # type: ignore[call-overload]
    return np.array([place[name] for name in classes])


def hits(top: NDArray[np.int64], own: NDArray[np.int64]) -> float:
    """Share of photographs whose own class (images,) is among the best of their map (images, ranks)."""
    return float((top == own[:, None]).any(1).mean())


def fits_better(top: NDArray[np.int64], own: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether other class numbers (images,) fit the maps significantly better than the own ones.

    McNemar's comparison, on the photographs where just one of the two is among the best: small samples and few classes
    raise no alarm.
    """
    with_own, with_other = (top == own[:, None]).any(1), (top == other[:, None]).any(1)
    gained, lost = int((with_other & ~with_own).sum()), int((with_own & ~with_other).sum())
    return gained - lost > SIGNIFICANT * math.sqrt(gained + lost)


def permuted_classes(top: NDArray[np.int64], own: NDArray[np.int64]) -> list[Confusion]:
    """Classes that are numbered otherwise in the labels; empty where that is not certain.

    A class is a candidate where most of its photographs have one other best class, hardly any its own, and no other class has
    the same answer with more photographs: an annotator that takes a rare class for a common one permutes nothing. Candidates
    are a permutation where the answers of two are candidates again, or where most classes have an answer that is nobody's.

    Args:
        top: int64 (images, ranks), best first, -1 for none.
        own: int64 (images,).

    Returns:
        those exchanged among each other first, then most photographs first.
    """
    present, counts = np.unique(own, return_counts=True)
    examined = present[counts >= _FEWEST_OF_CLASS]
    best: dict[int, Confusion] = {}  # by answer
    for index in examined.tolist():
        of_class = top[own == index]
        answers = np.bincount(of_class[:, 0][of_class[:, 0] >= 0], minlength=1)
        found = Confusion(index, int(answers.argmax()), int(answers.max()), len(of_class))
        if found.answer not in best or best[found.answer].count < found.count:
            best[found.answer] = found
    candidates = {
        found.own: found
        for found in best.values()
        if found.answer != found.own
        and found.count > _CONSISTENT * found.photographs
        and (top[own == found.own, 0] == found.own).sum() <= _HARDLY_EVER * found.photographs
    }
    taken = set(present.tolist()) - candidates.keys()
    found_all = [found for found in candidates.values() if found.answer not in taken]
    found_all.sort(key=lambda found: (found.answer not in candidates, -found.count, found.own))
    exchanged = sum(found.answer in candidates for found in found_all)
    enough = sum(found.photographs for found in found_all) >= _FEWEST
    return found_all if enough and (exchanged >= 2 or 2 * len(found_all) > len(examined)) else []


def above_chance(top: NDArray[np.int64], own: NDArray[np.int64], num_classes: int) -> bool | None:
    """Whether the maps know more of the own classes than chance; None: too few photographs to say.

    Chance is what the same maps reach with the photographs' classes dealt out anew: an annotator that answers with a common
    class is right by chance that often.
    """
    generator = np.random.default_rng(0)
    dealt = float(np.mean([hits(top, generator.permutation(own)) for _ in range(20)]))
    chance = dealt if len(np.unique(own)) > 1 else (top >= 0).sum(1).mean() / num_classes
    share = hits(top, own)
    error = math.sqrt(max(share, chance, 1 / len(own)) * (1 - min(share, chance, 1 - 1 / len(own))) / len(own))
    if share > chance + SIGNIFICANT * error:
        return True
    # an annotator that is worth its labels is a twentieth of the way from chance to certainty at the least
    return False if share + SIGNIFICANT * error < chance + 0.05 * (1 - chance) else None
