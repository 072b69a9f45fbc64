"""Sparse targets against dense arithmetic over all classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from tokenlabel.core.errors import LabelError
from tokenlabel.labels import (
    SparseTargets,
    blended_target,
    one_hot_targets,
    participation_mask,
    pooled_target,
    sparse_targets,
)
from tokenlabel.labels.geometry import ShapeError, sampling_weights, view_affine

BATCH, ROWS, COLS, K = 4, 6, 9, 3
GRID = (5, 4)


def make_maps(num_classes: int, seed: int = 0, stored: int = K) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.random((BATCH, ROWS, COLS, num_classes)).argsort(-1)[..., :stored]
    scores = -np.sort(-rng.normal(4, 3, classes.shape), axis=-1)
    return scores.astype(np.float16), classes.astype(np.uint16)


def make_boxes(seed: int = 0) -> torch.Tensor:
    corners = torch.rand(BATCH, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values
    corners[:, 1] += 0.05
    return corners.flatten(1)


def filled(values: np.ndarray, classes: np.ndarray, num_classes: int, background: np.ndarray | float) -> torch.Tensor:
    dense = np.broadcast_to(np.asarray(background, dtype=np.float64), (*classes.shape[:3], num_classes)).copy()
    np.put_along_axis(dense, classes.astype(np.int64), values.astype(np.float64), -1)
    return torch.from_numpy(dense)


def dense_reference(scores: np.ndarray, classes: np.ndarray, boxes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """As published: a map that is zero where nothing is stored, RoIAlign, softmax over all classes."""
    maps = filled(scores, classes, num_classes, 0.0).permute(0, 3, 1, 2).float()
    scaled = boxes * torch.tensor([COLS, ROWS, COLS, ROWS])
    rois = torch.cat([torch.arange(len(boxes))[:, None].float(), scaled], 1)
    return roi_align(maps, rois, GRID, sampling_ratio=-1, aligned=True).flatten(2).transpose(1, 2).softmax(-1)


@pytest.mark.parametrize("num_classes", [K, 5, 40, 3000], ids="K={}".format)
@pytest.mark.parametrize("as_torch", [False, True], ids=["numpy", "torch"])
def test_published_target(num_classes: int, as_torch: bool) -> None:
    scores, classes = make_maps(num_classes)
    boxes = make_boxes()
    given = (torch.from_numpy(scores), torch.from_numpy(classes.astype(np.int32))) if as_torch else (scores, classes)
    targets = sparse_targets(*given, boxes if as_torch else boxes.numpy(), grid=GRID, num_classes=num_classes)
    expected = dense_reference(scores, classes, boxes, num_classes)
    torch.testing.assert_close(targets.dense(), expected, atol=1e-6, rtol=1e-4)
    assert targets.dense().dtype == torch.float32
    assert targets.grid == GRID
    assert targets.values.shape[2] <= min(num_classes, ROWS * COLS * K)


def test_large_logits_do_not_overflow() -> None:
    scores, classes = make_maps(3000)
    boxes = make_boxes()
    for factor in (-300, 300):
        large = (scores * factor).astype(np.float16)
        targets = sparse_targets(large, classes, boxes, grid=GRID, num_classes=3000)
        torch.testing.assert_close(targets.dense(), dense_reference(large, classes, boxes, 3000), atol=2e-4, rtol=1e-3)
    low = np.full_like(scores, -3000)
    every = sparse_targets(low, make_maps(K)[1], boxes, grid=GRID, num_classes=K).dense()
    torch.testing.assert_close(every, torch.full_like(every, 1 / 3))
    three = np.broadcast_to(np.array([1, 2, 3], np.int64), low.shape).copy()
    others = sparse_targets(low, three, boxes, grid=GRID, num_classes=40).dense()
    torch.testing.assert_close(others[..., 4:], torch.full((BATCH, 20, 36), 1 / 37))


def test_padding_changes_nothing() -> None:
    scores, classes = make_maps(40)
    classes[1] = np.arange(1, K + 1)  # three classes, so the rest of its vocabulary is padded with class 0
    boxes = make_boxes()
    targets = sparse_targets(scores, classes, boxes, grid=GRID, num_classes=40)
    torch.testing.assert_close(targets.dense(), dense_reference(scores, classes, boxes, 40), atol=1e-6, rtol=1e-4)
    padding = targets.values[1, :, K:]
    torch.testing.assert_close(padding, targets.background[1, :, None].expand_as(padding), atol=0, rtol=1e-6)


def test_flip_and_affine_agree_with_mirrored_tokens() -> None:
    scores, classes = make_maps(40)
    boxes, flipped = make_boxes(), torch.tensor([True, False, True, False])
    plain = dense_reference(scores, classes, boxes, 40).unflatten(1, GRID)
    expected = torch.where(flipped[:, None, None, None], plain.flip(2), plain).flatten(1, 2)
    found = sparse_targets(scores, classes, boxes, grid=GRID, num_classes=40, flipped=flipped)
    torch.testing.assert_close(found.dense(), expected, atol=1e-6, rtol=1e-4)
    affine = view_affine(boxes, flipped)
    found = sparse_targets(scores, classes, None, grid=GRID, num_classes=40, affine=affine)
    torch.testing.assert_close(found.dense(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("reach", [1.0, 2.5], ids=["inside", "partly outside"])
def test_tail_keeps_the_whole_mass(reach: float) -> None:
    num_classes = 30
    scores, classes = make_maps(num_classes)
    boxes = make_boxes() * reach - (reach - 1) / 2
    tail = np.random.default_rng(1).normal(2, 1, scores.shape[:3]).astype(np.float16)
    targets = sparse_targets(scores, classes, boxes, grid=GRID, num_classes=num_classes, tail=tail)
    stored, rest = np.exp(scores.astype(np.float64)), np.exp(tail.astype(np.float64))
    total = stored.sum(-1) + rest
    other = (rest / total / (num_classes - K))[..., None]
    cells = filled(stored / total[..., None], classes, num_classes, other).flatten(1, 2)
    weights = sampling_weights(boxes, GRID, (ROWS, COLS)).double()
    seen = weights.sum(-1) > 0
    expected = weights @ cells / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(targets.dense()[seen], expected[seen].float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(targets.dense().sum(-1), torch.ones(BATCH, 20))


def test_tail_where_every_class_is_stored() -> None:
    scores, classes = make_maps(K)
    tail = np.full(scores.shape[:3], -np.inf, dtype=np.float16)
    targets = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=K, tail=tail)
    torch.testing.assert_close(targets.dense().sum(-1), torch.ones(BATCH, 20))


def test_pooled_target_is_one_token_of_the_pooled_map() -> None:
    scores, classes = make_maps(40)
    boxes = make_boxes()
    maps = filled(scores, classes, 40, 0.0).permute(0, 3, 1, 2).float()
    rois = torch.cat([torch.arange(BATCH)[:, None].float(), boxes * torch.tensor([COLS, ROWS, COLS, ROWS])], 1)
    expected = roi_align(maps, rois, (1, 1), sampling_ratio=-1, aligned=True).flatten(1).softmax(-1)
    target = pooled_target(scores, classes, boxes, num_classes=40)
    torch.testing.assert_close(target.dense()[:, 0], expected, atol=1e-6, rtol=1e-4)
    assert target.grid == (1, 1)


def test_pooled_target_needs_an_overlap_and_no_centre() -> None:
    scores, classes = make_maps(40)
    boxes = torch.tensor([[0, 0, 1, 1], [0.7, 0.0, 1.9, 1.0], [2.0, 2.0, 3.0, 3.0], [-0.9, 0, 0.3, 1]])
    assert pooled_target(scores, classes, boxes, num_classes=40).inside[:, 0].tolist() == [True, True, False, True]


def test_tokens_outside_the_photograph() -> None:
    scores, classes = make_maps(40)
    boxes = torch.tensor([[0, 0, 1, 1], [0.5, 0.0, 1.5, 1.0], [0.0, -0.5, 1.0, 0.5], [3.0, 3.0, 4.0, 4.0]])
    flipped = torch.tensor([False, True, False, False])
    targets = sparse_targets(scores, classes, boxes, grid=(4, 6), num_classes=40, flipped=flipped)
    inside = targets.inside.view(BATCH, 4, 6)
    assert inside[0].all()
    assert inside[1].tolist() == [[False] * 3 + [True] * 3] * 4  # the right half of the crop, mirrored
    assert inside[2].tolist() == [[False] * 6] * 2 + [[True] * 6] * 2
    assert not inside[3].any()
    assert torch.isfinite(targets.dense()).all()


def test_autocast_does_not_round_targets() -> None:
    scores, classes = make_maps(40)
    boxes = make_boxes()
    plain = sparse_targets(scores, classes, boxes, grid=GRID, num_classes=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sparse_targets(scores, classes, boxes, grid=GRID, num_classes=40)
    assert torch.equal(plain.values, cast.values)


@pytest.mark.parametrize(
    "weight",
    [0.3, torch.tensor(0.0), torch.tensor(1.0), torch.rand(BATCH, 1), torch.rand(BATCH, 20)],
    ids=["number", "zero", "one", "per image", "per token"],
)
def test_blend_equals_dense_arithmetic(weight: torch.Tensor | float) -> None:
    scores, classes = make_maps(40)
    targets = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=40)
    order = torch.tensor([2, 0, 1, 3])
    dense = targets.dense()
    share = torch.as_tensor(weight).expand(BATCH, 20)[..., None]
    once = targets.blend(order, weight)
    expected = share * dense + (1 - share) * dense[order]
    torch.testing.assert_close(once.dense(), expected, atol=1e-6, rtol=1e-4)
    twice = once.blend(torch.arange(3, -1, -1), 0.6)
    torch.testing.assert_close(twice.dense(), 0.6 * expected + 0.4 * expected.flip(0), atol=1e-6, rtol=1e-4)


def test_blend_decides_inside_by_what_counts() -> None:
    target = one_hot_targets(torch.tensor([0, 1]), 3).without(torch.tensor([False, True]))
    for weight, expected in ((1.0, [True, False]), (0.0, [False, True]), (0.5, [False, False])):
        assert target.blend(torch.tensor([1, 0]), weight).inside[:, 0].tolist() == expected


def test_without_takes_rows_out() -> None:
    scores, classes = make_maps(40)
    targets = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=40)
    kept = targets.without(torch.tensor([False, True, False, True]))
    assert kept.inside.any(1).tolist() == [True, False, True, False]
    assert targets.inside.all()  # the original stays


def test_index_select_and_to() -> None:
    scores, classes = make_maps(40)
    targets = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=40)
    chosen = targets.index_select(torch.tensor([3, 1])).to("cpu")
    assert torch.equal(chosen.dense(), targets.dense()[[3, 1]])
    assert len(chosen) == 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot(smoothing: float) -> None:
    target = one_hot_targets(np.array([2, 0]), 5, smoothing)
    expected = torch.full((2, 1, 5), smoothing / 5)
    expected[0, 0, 2] += 1 - smoothing
    expected[1, 0, 0] += 1 - smoothing
    torch.testing.assert_close(target.dense(), expected)
    assert target.inside.all()


def test_batch_of_one_and_of_none() -> None:
    scores, classes = make_maps(40)
    one = sparse_targets(scores[:1], classes[:1], make_boxes()[:1], grid=GRID, num_classes=40)
    every = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=40)
    torch.testing.assert_close(one.dense(), every.dense()[:1])
    none = sparse_targets(scores[:0], classes[:0], make_boxes()[:0], grid=GRID, num_classes=40)
    assert isinstance(none, SparseTargets)
    assert none.dense().shape == (0, 20, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((4, 6, 9))}, r"scores \(batch, rows, cols, k\) are \(4, 6, 9\)"),
        ({"classes": np.zeros((4, 6, 9, 2), np.int64)}, r"classes \(batch, rows, cols, k\) are \(4, 6, 9, 2\)"),
        ({"classes": np.zeros((4, 6, 9, 3), np.float16)}, "expected integers"),
        ({"classes": np.full((4, 6, 9, 3), 40)}, r"range from 40 to 40, expected \[0, 40\)"),
        ({"boxes": np.array([[0.0, 0, 1, 1]])}, r"boxes \(batch, \.\.\.\) are \(1, 4\)"),
        ({"tail": np.zeros((4, 9, 6))}, r"tail \(batch, rows, cols\) is \(4, 9, 6\)"),
        ({"num_classes": 2}, "k ends at 2"),
        ({"grid": (0, 4)}, "grid"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_errors_name_the_axes(changes: dict[str, object], message: str) -> None:
    scores, classes = make_maps(40)
    arguments = {"scores": scores, "classes": classes, "boxes": make_boxes(), "num_classes": 40} | changes
    with pytest.raises(LabelError, match=message):
        sparse_targets(**arguments)


@pytest.mark.parametrize(("index", "smoothing"), [([3], 0.0), ([-1], 0.0), ([[0]], 0.0), ([0], 1.0)])
def test_one_hot_errors(index: object, smoothing: float) -> None:
    with pytest.raises(LabelError):
        one_hot_targets(torch.tensor(index), 3, smoothing)


GOLDEN = (
    Path(__file__).parents[2] / "golden" / "released_targets.npz"
)  # made by the released code, see the script beside it


@pytest.fixture(scope="module")
def released() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def released_view(released: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in the photograph and flips; the released crops lie in the mirrored photograph."""
    top, left, height, width, mirrored = torch.from_numpy(released["crops"]).unbind(1)
    flipped = mirrored > 0
    x0 = torch.where(flipped, 1 - (left + width), left)
    x1 = torch.where(flipped, 1 - left, left + width)
    return torch.stack([x0, top, x1, top + height], 1), flipped


def released_targets(released: dict[str, np.ndarray], geometry: str) -> tuple[SparseTargets, SparseTargets]:
    boxes, flipped = released_view(released)
    maps = released["scores"], released["classes"], boxes
    tokens = sparse_targets(*maps, grid=(14, 14), num_classes=40, flipped=flipped, geometry=geometry)
    return tokens, pooled_target(*maps, num_classes=40, flipped=flipped, geometry=geometry)


def compare_to_released(
    label: SparseTargets, pooled: SparseTargets, tokens: SparseTargets, released: dict[str, np.ndarray], name: str
) -> None:
    ours = torch.cat([label.dense(), pooled.dense(), tokens.dense()], 1)[:, released["kept"]].transpose(1, 2)
    torch.testing.assert_close(ours, torch.from_numpy(released[name]), atol=1e-5, rtol=0)


def test_the_released_geometry_equals_the_released_code(released: dict[str, np.ndarray]) -> None:
    tokens, pooled = released_targets(released, "released")
    compare_to_released(one_hot_targets(released["ground_truth"], 40), pooled, tokens, released, "plain")
    exact, _ = released_targets(released, "exact")
    assert (exact.dense() - tokens.dense()).abs().amax((1, 2))[1:].min() > 0.1  # all but the whole photograph
    assert tokens.inside.all()


def test_label_smoothing_and_mixup_equal_the_released_code(released: dict[str, np.ndarray]) -> None:
    tokens, pooled = (target.smoothed(0.1) for target in released_targets(released, "released"))
    label = one_hot_targets(released["ground_truth"], 40, 0.1)
    compare_to_released(label, pooled, tokens, released, "smooth")
    torch.testing.assert_close(tokens.dense().sum(-1), torch.full((6, 196), 1 + 0.1 / 40))
    order = torch.arange(5, -1, -1)
    mixed = [target.blend(order, 0.3) for target in (label, pooled, tokens)]
    compare_to_released(*mixed, released, "mixed")


def test_released_geometry_knows_no_outside() -> None:
    scores, classes = make_maps(40)
    boxes = make_boxes() + 2.0
    assert sparse_targets(scores, classes, boxes, grid=GRID, num_classes=40, geometry="released").inside.all()
    assert pooled_target(scores, classes, boxes, num_classes=40, geometry="released").inside.all()


def dense_blend(map_target: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The released loss's lines, on dense arrays (batch, classes)."""
    ratio = (0.9 - 0.4 * (label.max(-1)[1] == map_target.max(-1)[1]))[:, None]
    return map_target * ratio + label * (1 - ratio)


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed before"])
def test_released_blend_equals_its_dense_arithmetic(mixed: bool) -> None:
    scores, classes = make_maps(40)
    pooled = pooled_target(scores, classes, make_boxes(), num_classes=40).smoothed(0.1)
    best = pooled.dense()[:, 0].argmax(-1)
    label = one_hot_targets(torch.where(torch.arange(BATCH) % 2 == 0, best, (best + 1) % 40), 40, 0.1)
    if mixed:
        pooled, label = (target.blend(torch.arange(3, -1, -1), 0.6) for target in (pooled, label))
    expected = dense_blend(pooled.dense()[:, 0], label.dense()[:, 0])
    torch.testing.assert_close(blended_target(pooled, label).dense()[:, 0], expected, atol=1e-6, rtol=1e-4)


def test_best_class_of_a_blend_sums_what_one_class_has_twice() -> None:
    twice = one_hot_targets(torch.tensor([1, 1, 2]), 5)  # image 0 gets 0.4 of 1 and 0.6 of 2...
    first = twice.blend(torch.tensor([2, 1, 2]), 0.4).blend(
        torch.tensor([1, 1, 2]), 0.7
    )  # ...then 0.58 of 1, in two parts
    blended = blended_target(first, one_hot_targets(torch.tensor([1, 1, 2]), 5))
    torch.testing.assert_close(blended.dense()[0, 0], torch.tensor([0, 0.5 * 0.58 + 0.5, 0.5 * 0.42, 0, 0]))


def test_blend_falls_back_on_the_label_where_the_view_shows_no_map() -> None:
    scores, classes = make_maps(40)
    boxes = torch.tensor([[2.0, 2.0, 3.0, 3.0]]).repeat(BATCH, 1)
    label = one_hot_targets(torch.arange(BATCH), 40)
    blended = blended_target(pooled_target(scores, classes, boxes, num_classes=40), label)
    assert blended.inside.all()
    torch.testing.assert_close(blended.dense(), label.dense())
    with pytest.raises(LabelError, match="as the map's"):
        blended_target(label, one_hot_targets(torch.arange(BATCH), 41))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("exact_mass", [False, True], ids=["published", "tail"])
def test_temperature(temperature: float, exact_mass: bool) -> None:
    scores, classes = make_maps(40)
    boxes = make_boxes()
    tail = np.random.default_rng(1).normal(2, 1, scores.shape[:3]).astype(np.float16) if exact_mass else None
    found = sparse_targets(
        scores, classes, boxes, grid=GRID, num_classes=40, tail=tail, temperature=temperature
    ).dense()  # fmt: skip
    weights = sampling_weights(boxes, GRID, (ROWS, COLS)).double()
    if tail is None:
        aligned = weights @ filled(scores, classes, 40, 0.0).flatten(1, 2)
        expected = (aligned / temperature).softmax(-1)
    else:
        each = (tail.astype(np.float64) - np.log(40 - K))[..., None]  # the tail, spread evenly
        cells = (filled(scores, classes, 40, each) / temperature).softmax(-1)
        expected = weights @ cells.flatten(1, 2)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_tempered_even_tail_bounds_the_true_one(temperature: float) -> None:
    logits = torch.randn(1, 4, 4, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    scores, classes = logits.topk(K, -1)
    rest = logits.scatter(-1, classes, -torch.inf)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    target = sparse_targets(
        scores, classes, box, (4, 4), 40, tail=rest.logsumexp(-1), temperature=temperature
    ).dense().view(1, 4, 4, 40)  # fmt: skip
    stored = target.gather(-1, classes).sum(-1)
    true = (logits / temperature).softmax(-1).gather(-1, classes).sum(-1)
    assert ((stored < true) if temperature > 1 else (stored > true)).all()


def test_a_total_in_half_precision_rounds_below_its_parts_but_a_tail_does_not() -> None:
    """Why shards keep the tail: the total minus what is stored is often negative, and no logarithm of it exists."""
    logits = np.random.default_rng(0).normal(0, 2, (4000, 40))
    logits[:, 0] += 12  # a sure annotator
    stored = -np.sort(-logits, axis=-1)[:, :K].astype(np.float16).astype(np.float64)
    rest = np.log(np.exp(-np.sort(-logits, axis=-1)[:, K:]).sum(-1))
    total = np.logaddexp(np.log(np.exp(stored).sum(-1)), rest)
    left = np.exp(total.astype(np.float16).astype(np.float64)) - np.exp(stored).sum(-1)
    assert (left < 0).mean() > 0.2
    kept = rest.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(np.exp(kept), np.exp(rest), rtol=np.abs(rest).max() * 2**-10)


def test_padding_to_fixed_sizes_changes_no_distribution() -> None:
    scores, classes = make_maps(40)
    targets = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=40)
    padded = targets.padded(vocabulary=ROWS * COLS * K, tokens=25)
    assert padded.vocabulary.shape == (BATCH, ROWS * COLS * K)
    assert padded.values.shape == (BATCH, 25, ROWS * COLS * K)
    torch.testing.assert_close(padded.dense()[:, :20], targets.dense())
    assert torch.equal(padded.inside[:, :20], targets.inside)
    assert not padded.inside[:, 20:].any()
    torch.testing.assert_close(padded.dense()[:, 20:], torch.full((BATCH, 5, 40), 1 / 40))
    assert torch.equal(targets.padded().values, targets.values)
    for sizes in ({"vocabulary": 3}, {"tokens": 19}):
        with pytest.raises(LabelError, match="more than"):
            targets.padded(**sizes)


def test_unlabeled_counts_images_without_a_token() -> None:
    scores, classes = make_maps(40)
    boxes = torch.tensor([[0, 0, 1, 1], [2.0, 2.0, 3.0, 3.0], [0.7, 0.0, 1.9, 1.0], [-3.0, 0, -2.0, 1]])
    targets = sparse_targets(scores, classes, boxes, grid=GRID, num_classes=40)
    assert targets.unlabeled.shape == ()
    assert targets.unlabeled == 2
    assert targets.without(torch.ones(BATCH, dtype=torch.bool)).unlabeled == BATCH


@pytest.mark.parametrize(("share", "count"), [(1.0, 196), (0.2, 39), (0.5, 98), (0.001, 1)])
def test_participation_is_an_exact_count_of_the_seed_alone(share: float, count: int) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    mask = participation_mask(5, 196, share, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [count] * 5
    assert torch.equal(mask, participation_mask(5, 196, share, seed=7))
    if share < 1:
        assert not torch.equal(mask, participation_mask(5, 196, share, seed=8))
        assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_participation_errors(share: float) -> None:
    with pytest.raises(LabelError, match="share"):
        participation_mask(1, 4, share, seed=0)


def test_many_classes() -> None:
    scores, classes = make_maps(40)
    wide = classes.astype(np.int64) * 2500 + 7  # up to 97,507
    targets = sparse_targets(scores, wide, make_boxes(), grid=GRID, num_classes=100_000)
    assert targets.values.shape[2] <= 40
    few = sparse_targets(scores, classes, make_boxes(), grid=GRID, num_classes=40)
    torch.testing.assert_close(  # the same logits over more classes: only the total differs
        targets.values / targets.values.sum(-1, keepdim=True), few.values / few.values.sum(-1, keepdim=True)
    )
    torch.testing.assert_close(
        targets.values.sum(-1) + (100_000 - targets.values.shape[2]) * targets.background, torch.ones(BATCH, 20)
    )


def test_blend_where_every_stored_logit_is_negative() -> None:
    """The released code compares with the best of all classes; it is then one that the map does not name."""
    scores, classes = np.full((1, 2, 2, 1), -3.0), np.full((1, 2, 2, 1), 4)
    pooled = pooled_target(scores, classes, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), num_classes=10)
    label = one_hot_targets(torch.tensor([4]), 10)
    dense = pooled.dense()[0, 0]
    assert int(dense.argmax()) == 0
    expected = 0.9 * dense + 0.1 * label.dense()[0, 0]
    torch.testing.assert_close(blended_target(pooled, label).dense()[0, 0], expected)


def test_a_view_beside_the_photograph_is_not_pooled() -> None:
    scores, classes = np.ones((1, 4, 4, 1)), np.zeros((1, 4, 4, 1), dtype=np.int64)
    beside = torch.tensor([[-0.05, 0.1, -0.01, 0.5]])
    assert not pooled_target(scores, classes, beside, num_classes=3).inside.any()
    assert pooled_target(scores, classes, beside + 0.03, num_classes=3).inside.all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers(value: float) -> None:
    scores, classes = np.full((1, 4, 4, 1), value), np.zeros((1, 4, 4, 1), dtype=np.int64)
    with pytest.raises(ShapeError, match="scores hold infinite values or none"):
        sparse_targets(scores, classes, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), num_classes=3)


def test_blend_checks_its_weight_and_its_permutation() -> None:
    targets = one_hot_targets(torch.tensor([0, 1]), 3)
    with pytest.raises(ShapeError, match=r"weight is 1\.7"):
        targets.blend(torch.tensor([1, 0]), 1.7)
    with pytest.raises(ShapeError, match="expected integers"):
        targets.blend(torch.tensor([1.0, 0.0]), 0.5)
