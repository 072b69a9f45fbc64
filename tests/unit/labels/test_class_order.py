"""Labels in another class order are told from a weak annotator's, at any number of classes and photographs.

Real labels in a wrong order are in tests/unit/train/test_preflight.py and tests/unit/annotate/test_check.py; here are the ones of
annotators whose knowledge is set.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tokenlabel.labels.class_order import above_chance, fits_better, permuted_classes


def answers(own: NDArray[np.int64], classes: int, right: float, seed: int, ranks: int = 5) -> NDArray[np.int64]:
    """Best classes of an annotator whose first answer is right for a share of photographs, else any class."""
    generator = np.random.default_rng(seed)
    top = generator.integers(0, classes, (len(own), ranks))
    top[:, 0] = np.where(generator.random(len(own)) < right, own, top[:, 0])
    return top


@pytest.mark.parametrize(
    ("classes", "photographs"), [(1000, 5000), (1000, 256), (100, 300), (20, 200), (2, 30), (2, 5000)]
)
@pytest.mark.parametrize("right", [0.0, 0.02, 0.1, 0.5])
def test_a_weak_annotator_raises_no_alarm(classes: int, photographs: int, right: float) -> None:
    """Two percent above chance is weak; one without any knowledge is no permutation either."""
    for seed in range(20):
        own = np.random.default_rng(1000 + seed).integers(0, classes, photographs)
        top = answers(own, classes, right, seed, ranks=1 if classes == 2 else 5)
        assert permuted_classes(top, own) == []
        if right >= 0.1:
            assert above_chance(top, own, classes) is not False


def test_an_annotator_that_answers_with_one_class_is_no_permutation() -> None:
    own = np.repeat(np.arange(20), 30)
    top = np.full((600, 5), 7)
    top[:, 1:] = [1, 2, 3, 4]
    assert permuted_classes(top, own) == []
    rare = np.concatenate([np.full(5, 3), np.full(500, 8)])  # a rare class that is taken for a common one
    assert permuted_classes(np.full((505, 1), 8), rare) == []


@pytest.mark.parametrize("right", [0.6, 0.9])
@pytest.mark.parametrize(("classes", "photographs"), [(1000, 5000), (100, 500), (20, 200), (2, 40)])
def test_a_permutation_is_found_behind_a_middling_annotator(classes: int, photographs: int, right: float) -> None:
    for seed in range(20):
        generator = np.random.default_rng(1000 + seed)
        order = np.roll(np.arange(classes), 1)
        own = generator.integers(0, classes, photographs)
        top = answers(order[own], classes, right + (1 - right) * (classes == 2), seed, ranks=1 if classes == 2 else 5)
        assert permuted_classes(top, own) or above_chance(top, own, classes) is False


def test_labels_that_know_nothing_of_many_photographs_are_told_from_too_few_photographs() -> None:
    own = np.random.default_rng(0).integers(0, 1000, 5000)
    assert above_chance(answers(own, 1000, 0.0, 1), own, 1000) is False
    assert above_chance(answers(own[:20], 1000, 0.0, 1), own[:20], 1000) is None
    assert above_chance(answers(own, 1000, 0.03, 1), own, 1000) is True


def test_another_order_fits_better_only_where_that_is_certain() -> None:
    own = np.arange(2).repeat(20)
    assert fits_better((1 - own)[:, None], own, 1 - own)
    assert not fits_better((1 - own)[:10, None], own[:10], 1 - own[:10])  # ten photographs of two classes prove nothing
    weak = np.where(np.random.default_rng(0).random(2000) < 0.5, 0, 1)
    dealt = np.random.default_rng(1).integers(0, 2, 2000)
    assert not fits_better(weak[:, None], dealt, 1 - dealt)
