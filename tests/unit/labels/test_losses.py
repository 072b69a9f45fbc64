"""The token loss against the dense cross-entropy, in value and gradient."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch._dynamo.testing import CompileCounterWithBackend

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_can_be_differentiated_again(dtype: torch.dtype) -> None:
    """The first backward pass scales the kept gradient in place; the second makes it anew."""
    targets, logits = make_targets(), make_logits(dtype)
    loss = token_cross_entropy(logits, targets)
    once, twice, last = (torch.autograd.grad(factor * loss, logits, retain_graph=True)[0] for factor in (1, 2, 1))
    torch.testing.assert_close(once, last, atol=1e-9, rtol=1e-6 if dtype == torch.float32 else 1e-2)
    torch.testing.assert_close(2 * once, twice, atol=1e-9, rtol=1e-6 if dtype == torch.float32 else 1e-2)


def test_a_loss_scale_reaches_half_precision_gradients_before_they_are_rounded() -> None:
    targets, scale = make_targets().padded(tokens=2000), 65536.0
    logits = torch.randn(BATCH, 2000, CLASSES, generator=torch.Generator().manual_seed(1))
    halves = logits.half().requires_grad_()
    (token_cross_entropy(halves, targets) * 1e-4 * scale).backward()
    exact = halves.detach().double().requires_grad_()
    (token_cross_entropy(exact, targets) * 1e-4).backward()
    torch.testing.assert_close(halves.grad.double() / scale, exact.grad, atol=1e-12, rtol=2e-3)


@pytest.mark.parametrize("block", [1, 100, 60 * 5, 60 * 12, 60 * 12 * 3], ids="{} logits".format)
def test_the_size_of_blocks_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenlabel.labels.losses.BLOCK_CPU_CORE", block)
    targets, ours, reference = make_targets(True), make_logits(), make_logits()
    loss, expected = token_cross_entropy(ours, targets), dense_loss(reference, targets.dense(), targets.inside)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, reference.grad, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, -3000.0, 20000.0])
def test_a_common_offset_of_the_logits_costs_no_digits(offset: float) -> None:
    targets = make_targets()
    logits = (make_logits().detach() * 8).round() / 8  # steps that float32 holds at any of the offsets
    loss = token_cross_entropy((logits + offset).float(), targets)
    expected = dense_loss(logits, targets.dense(), targets.inside)
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("classes", [1000, 21841])
def test_float32_is_good_to_a_millionth(classes: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scores, chosen = torch.randn(2, 9, 9, classes, generator=generator).mul_(3).topk(5, -1)
    box = torch.tensor([[0.1, 0.2, 0.8, 0.9]]).repeat(2, 1)
    targets = sparse_targets(scores, chosen, box, grid=(4, 4), num_classes=classes)
    logits = torch.randn(2, 16, classes, generator=generator).mul_(4).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    loss, expected = token_cross_entropy(logits, targets), token_cross_entropy(exact, targets)
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-9, rtol=1e-4)


def test_logits_that_are_not_contiguous() -> None:
    targets, plain = make_targets(), make_logits()
    turned = plain.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    assert not turned.is_contiguous()
    token_cross_entropy(turned, targets).backward()
    token_cross_entropy(plain, targets).backward()
    torch.testing.assert_close(turned.grad, plain.grad)


def test_padding_tokens_and_vocabulary_change_nothing() -> None:
    targets, logits = make_targets(), make_logits()
    longer = torch.cat([logits.detach(), torch.full((BATCH, 5, CLASSES), 9.0, dtype=torch.float64)], 1).requires_grad_()
    loss = token_cross_entropy(longer, targets.padded(vocabulary=105, tokens=TOKENS + 5))
    expected = token_cross_entropy(logits, targets)
    torch.testing.assert_close(loss, expected, atol=1e-7, rtol=1e-7)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(longer.grad[:, :TOKENS], logits.grad, atol=1e-8, rtol=1e-6)
    assert not longer.grad[:, TOKENS:].any()


def test_no_array_of_the_targets_size_but_the_gradient() -> None:
    """Peak extra memory, exactly: the allocator's own events."""
    targets = sparse_targets(
        torch.randn(8, 6, 6, 5), torch.randint(0, 20, (8, 6, 6, 5)), torch.tensor([[0.0, 0, 1, 1]]).repeat(8, 1),
        grid=(7, 7), num_classes=30_000,
    )  # fmt: skip
    logits = torch.randn(8, 49, 30_000, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profiler:
        token_cross_entropy(logits, targets).backward()
    present = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            present += event.nbytes()
            peak = max(peak, present)
    size = logits.nbytes
    assert size <= peak < 1.2 * size


def compiled_step(logits: torch.Tensor, targets: SparseTargets, mask: torch.Tensor) -> torch.Tensor:
    return token_cross_entropy(2 * logits, targets, mask)


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[pytest.mark.campaign, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")],
        ),
    ],
)
def test_compiled_without_breaks_and_without_another_compilation(backend: str) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(compiled_step, fullgraph=True, backend=counter)
    options = {"compile_threads": 1} if backend == "inductor" else {}
    with torch._inductor.config.patch(options):  # no pool of compiling processes for one small graph
        for seed, tail in enumerate((False, True)):
            generator = torch.Generator().manual_seed(seed)
            targets = make_targets(tail).padded(vocabulary=105)
            mask = torch.rand(BATCH, TOKENS, generator=generator) < 0.5
            ours, reference = make_logits(torch.float32), make_logits(torch.float32)
            loss, expected = compiled(ours, targets, mask), compiled_step(reference, targets, mask)
            loss.backward()
            expected.backward()
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(ours.grad, reference.grad, atol=1e-7, rtol=1e-5)
    assert counter.frame_count == 1


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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tokens_that_take_no_part_do_not_matter(value: float, compiled: bool) -> None:
    torch._dynamo.reset()
    loss_of = (
        torch.compile(token_cross_entropy, backend="aot_eager", fullgraph=True) if compiled else token_cross_entropy
    )
    targets = one_hot_targets(torch.tensor([1, 2]), 5, smoothing=0.1).padded(tokens=3)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = token_cross_entropy(logits, targets)
    logits[:, 1:] = value
    logits.requires_grad_()
    loss = loss_of(logits, targets)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[:, :1].isfinite().all()
    assert not logits.grad[:, 1:].any()


def test_classes_that_are_masked_out_do_not_matter_without_smoothing() -> None:
    logits = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(0))
    logits[:, :, 4] = float("-inf")
    found = token_cross_entropy(logits, one_hot_targets(torch.tensor([1, 2]), 5))
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits[:, 0], torch.tensor([1, 2])))
