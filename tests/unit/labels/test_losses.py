"""The token loss against the dense cross-entropy, in value and gradient."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tokenlabel.core.errors import LabelError
from tokenlabel.labels import SparseTargets, one_hot_targets, sparse_targets, token_cross_entropy

BATCH, TOKENS, CLASSES = 4, 12, 60


def make_targets(tail: bool = False) -> SparseTargets:
    rng = np.random.default_rng(0)
    classes = rng.random((BATCH, 5, 7, 20)).argsort(-1)[..., :3]  # 40 classes are in no map
    classes[1] = [4, 5, 6]  # a short vocabulary, so there is padding
    scores = -np.sort(-rng.normal(3, 2, classes.shape), axis=-1)
    boxes = np.array([[0, 0, 1, 1], [0.2, 0.1, 0.9, 0.5], [0.4, 0.0, 1.6, 1.0], [2, 2, 3, 3]])
    rest = rng.normal(1, 1, classes.shape[:3]) if tail else None
    return sparse_targets(scores, classes, boxes, grid=(4, 3), num_classes=CLASSES, tail=rest)


def dense_loss(logits: torch.Tensor, dense: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    per_token = -(dense.to(logits.dtype) * logits.log_softmax(-1)).sum(-1)
    per_image = [
        loss[mask].mean() if mask.any() else loss.sum() * 0 for loss, mask in zip(per_token, counted, strict=True)
    ]
    return torch.stack(per_image).mean()


def make_logits(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    logits = torch.randn(BATCH, TOKENS, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    return logits.to(dtype).requires_grad_()


@pytest.mark.parametrize("tail", [False, True], ids=["published", "tail"])
@pytest.mark.parametrize("blended", [False, True], ids=["plain", "blended"])
@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "some tokens"])
def test_equals_the_dense_loss_and_gradient(tail: bool, blended: bool, masked: bool) -> None:
    targets = make_targets(tail)
    if blended:
        targets = targets.blend(torch.tensor([1, 2, 0, 3]), torch.rand(BATCH, TOKENS))
    mask = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(2)) < 0.5 if masked else None
    counted = targets.inside if mask is None else targets.inside & mask
    ours, reference = make_logits(), make_logits()
    loss = token_cross_entropy(ours, targets, mask)
    expected = dense_loss(reference, targets.dense(), counted)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, reference.grad, atol=1e-7, rtol=1e-5)
    assert counted.any(1).tolist() != [True] * BATCH  # the last image has no token inside: the case is covered


def test_targets_that_do_not_sum_to_one() -> None:
    targets = dataclasses.replace(make_targets(), background=torch.full((BATCH, TOKENS), 0.3))
    ours, reference = make_logits(), make_logits()
    loss, expected = token_cross_entropy(ours, targets), dense_loss(reference, targets.dense(), targets.inside)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, reference.grad, atol=1e-6, rtol=1e-5)


def test_gradcheck() -> None:
    targets = make_targets()
    assert torch.autograd.gradcheck(lambda logits: token_cross_entropy(logits, targets), (make_logits(),))


def test_images_without_tokens_count_in_the_denominator() -> None:
    targets = one_hot_targets(torch.tensor([0, 1, 2, 0]), CLASSES)
    logits = make_logits()[:, :1].detach()
    every = torch.nn.functional.cross_entropy(logits[:, 0], torch.tensor([0, 1, 2, 0]), reduction="none")
    loss = token_cross_entropy(logits, targets.without(torch.tensor([False, True, False, True])))
    torch.testing.assert_close(loss, (every[0] + every[2]) / 4, atol=1e-6, rtol=1e-6)


def test_nothing_takes_part() -> None:
    logits = make_logits()
    loss = token_cross_entropy(logits, make_targets().without(torch.ones(BATCH, dtype=torch.bool)))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_labels_equal_torch(smoothing: float) -> None:
    index = torch.tensor([3, 0, 59, 7])
    logits = make_logits(torch.float32)[:, 0].detach()
    loss = token_cross_entropy(logits[:, None], one_hot_targets(index, CLASSES, smoothing))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, index, label_smoothing=smoothing))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    targets = make_targets()
    half = make_logits(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_cross_entropy(half, targets)
    exact = half.detach().float().requires_grad_()
    expected = dense_loss(exact, targets.dense(), targets.inside)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype
    torch.testing.assert_close(half.grad.float(), exact.grad, atol=1e-4, rtol=1e-2)


def test_non_finite_logits_are_not_hidden() -> None:
    logits = make_logits().detach()
    logits[0, 0, 0] = torch.inf
    assert not torch.isfinite(token_cross_entropy(logits, make_targets()))


def test_empty_batch() -> None:
    targets = make_targets().index_select(torch.zeros(0, dtype=torch.long))
    assert token_cross_entropy(torch.zeros(0, TOKENS, CLASSES), targets).item() == 0


def test_errors_name_the_axes() -> None:
    targets = make_targets()
    with pytest.raises(LabelError, match=r"logits \(batch, tokens, classes\) are \(4, 12, 59\)"):
        token_cross_entropy(torch.zeros(BATCH, TOKENS, CLASSES - 1), targets)
    with pytest.raises(LabelError, match=r"participation \(batch, tokens\) is \(4, 11\)"):
        token_cross_entropy(make_logits(), targets, torch.ones(BATCH, TOKENS - 1, dtype=torch.bool))
