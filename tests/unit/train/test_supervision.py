"""Mixing of photographs: the targets follow the pixels and tokens, whatever the grid, the box and the size of the batch; and
the loss as a whole, by micro-batch."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokenlabel.core.config import load_config
from tokenlabel.labels import SparseTargets, one_hot_targets, sparse_targets
from tokenlabel.models import MixBox, TokenOutput
from tokenlabel.train.batches import MicroBatch
from tokenlabel.train.supervision import (
    MixDraw,
    Supervision,
    draw_mix,
    mix_class_target,
    mix_pixels,
    mix_token_targets,
)

CLASSES = 50
RECIPE = {"mix": "none", "mix_probability": 1.0, "mix_alpha": 1.0, "mixup_alpha": 0.8}


def pictures(batch: int, side: int) -> Tensor:
    """Photograph b has the grey level b everywhere."""
    return torch.arange(float(batch))[:, None, None, None].expand(batch, 3, side, side).clone()


def token_targets(batch: int, grid: tuple[int, int], seed: int) -> SparseTargets:
    """Targets that differ from photograph to photograph and from cell to cell."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, 5, 5, 2, generator=generator) * 6
    classes = torch.rand(batch, 5, 5, CLASSES, generator=generator).argsort(-1)[..., :2]
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(batch, 4)
    return sparse_targets(scores, classes, boxes, grid=grid, num_classes=CLASSES)


def drawn(kind: str, grid: tuple[int, int], side: int, seed: int) -> MixDraw:
    return draw_mix(RECIPE | {"mix": kind}, grid, side, random.Random(seed))


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grids, st.integers(1, 5), st.integers(8, 21), st.integers(0, 2**32))
def test_cutmix_targets_weigh_by_the_pixels_that_a_token_shows(
    grid: tuple[int, int], batch: int, side: int, seed: int
) -> None:
    draw = drawn("cutmix", grid, side, seed)
    assert draw.pixel_box is not None
    mixed = mix_pixels(pictures(batch, side), draw)
    targets = token_targets(batch, grid, seed)
    dense, followed = targets.dense(), mix_token_targets(targets, draw, side).dense()
    for image in range(batch):
        own = mixed[image, 0] == image  # the middle photograph of an odd batch is its own partner
        partner = batch - 1 - image
        for token in range(grid[0] * grid[1]):
            (top, bottom), (left, right) = cell(token // grid[1], grid[0], side), cell(token % grid[1], grid[1], side)
            share = own[top:bottom, left:right].float().mean()
            expected = share * dense[image, token] + (1 - share) * dense[partner, token]
            torch.testing.assert_close(followed[image, token], expected, atol=1e-6, rtol=1e-5)
    labels = one_hot_targets(torch.arange(batch), CLASSES, 0.1)
    whole = (mixed[:, 0] == torch.arange(batch)[:, None, None]).float().mean((1, 2))[:, None, None]
    expected = whole * labels.dense() + (1 - whole) * labels.dense().flip(0)
    torch.testing.assert_close(mix_class_target(labels, draw).dense(), expected, atol=1e-6, rtol=1e-5)


def cell(index: int, count: int, side: int) -> tuple[int, int]:
    """First pixel of a cell and the one after its last; cells overlap by a pixel where the grid does not divide the side."""
    return index * side // count, -(-(index + 1) * side // count)


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_mixup_blends_pictures_and_all_targets_alike(grid: tuple[int, int], batch: int, seed: int) -> None:
    draw = drawn("mixup", grid, 8, seed)
    assert draw.blend is not None
    assert (draw.pixel_box, draw.token_box) == (None, None)
    images = pictures(batch, 8)
    targets, labels = token_targets(batch, grid, seed), one_hot_targets(torch.arange(batch), CLASSES, 0.1)
    pairs = [
        (mix_pixels(images, draw), images),
        (mix_token_targets(targets, draw, 8).dense(), targets.dense()),
        (mix_class_target(labels, draw).dense(), labels.dense()),
    ]
    for mixed, plain in pairs:
        torch.testing.assert_close(mixed, draw.blend * plain + (1 - draw.blend) * plain.flip(0), atol=1e-6, rtol=1e-5)


@given(grids, st.integers(1, 5), st.integers(0, 2**32))
def test_mixtoken_leaves_pixels_and_token_targets_and_weighs_the_class_by_area(
    grid: tuple[int, int], batch: int, seed: int
) -> None:
    draw = drawn("mixtoken", grid, 8, seed)
    assert draw.token_box is not None
    images, targets = pictures(batch, 8), token_targets(batch, grid, seed)
    assert torch.equal(mix_pixels(images, draw), images)
    assert torch.equal(mix_token_targets(targets, draw, 8).dense(), targets.dense())
    labels = one_hot_targets(torch.arange(batch), CLASSES, 0.0)
    own = 1 - draw.token_box.mask().float().mean()
    expected = own * labels.dense() + (1 - own) * labels.dense().flip(0)
    torch.testing.assert_close(mix_class_target(labels, draw).dense(), expected)


def test_mixing_does_not_write_into_the_photographs() -> None:
    images = pictures(3, 8)
    before = images.clone()
    mix_pixels(images, MixDraw(pixel_box=MixBox((0, 4), (0, 8), (8, 8))))
    mix_pixels(images, MixDraw(blend=0.3))
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("none", {}, {"nothing": 1.0}),
        ("mixtoken", {"mix_probability": 0.3}, {"token": 0.3, "nothing": 0.7}),
        ("mixtoken_mixup", {}, {"token+blend": 1.0}),
        ("cutmix_mixup", {}, {"pixel": 0.5, "blend": 0.5}),
    ],
)
def test_what_is_mixed_how_often(kind: str, changes: dict[str, Any], expected: dict[str, float]) -> None:
    counts: dict[str, int] = {}
    for seed in range(2000):
        draw = draw_mix(RECIPE | {"mix": kind} | changes, (14, 14), 224, random.Random(seed))
        parts = {"token": draw.token_box, "pixel": draw.pixel_box, "blend": draw.blend}
        name = "+".join(part for part, value in parts.items() if value is not None) or "nothing"
        counts[name] = counts.get(name, 0) + 1
    assert {name: count / 2000 for name, count in counts.items()} == pytest.approx(expected, abs=0.04)


GRID, SIDE, UPRIGHT = (4, 4), 8, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


class Answers(nn.Module):
    """A model in whatever wrapping: it answers any images with the same logits and remembers what it was given."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.class_logits = nn.Parameter(torch.randn(batch, CLASSES, generator=generator))
        self.token_logits = nn.Parameter(torch.randn(batch, GRID[0] * GRID[1], CLASSES, generator=generator))
        self.given: list[tuple[Tensor, MixBox | None]] = []

    def forward(self, images: Tensor, mix: MixBox | None) -> TokenOutput:
        self.given.append((images, mix))
        return TokenOutput(self.class_logits, self.token_logits, GRID)


def micro_batch(batch: int, index: int = 0, affine: Tensor = UPRIGHT) -> MicroBatch:
    generator = torch.Generator().manual_seed(batch)
    return MicroBatch(
        images=torch.rand(batch, 3, SIDE, SIDE, generator=generator),
        class_index=torch.arange(batch) % CLASSES,
        affine=affine.expand(batch, 2, 3),
        scores=torch.rand(batch, 5, 5, 2, generator=generator) * 6,
        classes=torch.rand(batch, 5, 5, CLASSES, generator=generator).argsort(-1)[..., :2].int(),
        tail=None,
        skipped=0,
        index=index,
    )


@pytest.fixture
def recipe(raw_config: dict[str, Any]) -> dict[str, Any]:
    return load_config(raw_config).recipes["released_code"].model_dump(mode="json") | {"mix": "none"}


def supervised(
    recipe: dict[str, Any],
    batch: MicroBatch,
    model: nn.Module | None = None,
    epoch: int = 0,
    step: int = 0,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    supervision = Supervision(recipe, CLASSES, GRID, SIDE, seed)
    return supervision.loss(model or Answers(batch.images_count), batch, epoch, step)


def test_every_micro_batch_has_draws_of_its_own(recipe: dict[str, Any]) -> None:
    """Whichever process it is in: one process with four of them mixes as four processes with one each."""
    recipe |= {"mix": "mixtoken_mixup", "participation": 0.5}

    def seen(index: int, **when: int) -> tuple[Any, ...]:
        model = Answers(4)
        loss, _ = supervised(recipe, micro_batch(4, index), model, **when)
        loss.backward()  # type: ignore[no-untyped-call]
        assert model.token_logits.grad is not None
        (images, box), took_part = model.given[0], model.token_logits.grad.abs().sum(-1) > 0
        return images[0].sum().item(), box, tuple(took_part.flatten().tolist()), loss.item()

    first = [seen(index) for index in range(6)]
    assert first == [seen(index) for index in range(6)]
    for column in zip(*first, strict=True):
        assert len(set(column)) > 3
    others = [seen(0, epoch=1), seen(0, step=1), seen(0, seed=1)]
    assert all(other[0] != first[0][0] and other[2] != first[0][2] for other in others)


@pytest.mark.parametrize("mix", ["none", "mixtoken", "mixtoken_mixup", "cutmix", "mixup"])
def test_the_share_of_participating_tokens_is_every_images_own(recipe: dict[str, Any], mix: str) -> None:
    recipe |= {"participation": 0.25, "mix": mix}
    model = Answers(6)
    _, parts = supervised(recipe, micro_batch(6), model)
    parts["token_loss"].backward()  # type: ignore[no-untyped-call]
    assert model.token_logits.grad is not None
    took_part = model.token_logits.grad.abs().sum(-1) > 0
    assert took_part.sum(1).tolist() == [4] * 6
    assert len({tuple(row.tolist()) for row in took_part}) > 1


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("mix", ["none", "mixtoken", "mixtoken_mixup", "cutmix_mixup", "cutmix"])
@pytest.mark.parametrize("class_target", ["map", "label", "blend"])
def test_any_size_of_batch(recipe: dict[str, Any], batch: int, mix: str, class_target: str) -> None:
    """The middle photograph of an odd batch is its own partner, and a single one is nobody else's."""
    loss, parts = supervised(recipe | {"mix": mix, "class_target": class_target}, micro_batch(batch))
    assert torch.isfinite(loss)
    assert parts["unlabeled"] == 0
    if batch == 1 and mix != "cutmix_mixup":
        plain, _ = supervised(recipe | {"class_target": class_target}, micro_batch(1))
        torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("supervision", ["token", "relabel"])
def test_a_view_that_shows_nothing_of_the_map_teaches_the_photographs_own_label(
    recipe: dict[str, Any], supervision: str
) -> None:
    recipe |= {"supervision": supervision, "class_target": "map"}
    beside = torch.tensor([[0.2, 0.0, 1.5], [0.0, 0.2, 0.0]])
    batch = micro_batch(4, affine=beside)
    _, parts = supervised(recipe, batch)
    hard, _ = supervised(recipe | {"supervision": "hard", "class_target": "label"}, batch)
    torch.testing.assert_close(parts["class_loss"], hard)
    if supervision == "token":
        assert parts["unlabeled"] == 4
        assert parts["token_loss"] == 0  # and the class loss alone is left


def test_hard_labels_never_look_at_maps(recipe: dict[str, Any]) -> None:
    recipe |= {"supervision": "hard", "class_target": "label", "label_smoothing": 0.1}
    batch, model = replace(micro_batch(5), scores=None, classes=None), Answers(5)
    loss, parts = supervised(recipe, batch, model)
    expected = nn.functional.cross_entropy(model.class_logits, batch.class_index, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    assert parts.keys() == {"class_loss"}


def test_the_loss_is_equation_3(recipe: dict[str, Any]) -> None:
    recipe |= {"token_weight": 0.5, "label_smoothing": 0.0, "class_target": "label"}
    batch, model = micro_batch(5), Answers(5)
    loss, _ = supervised(recipe, batch, model)
    maps = sparse_targets(batch.scores, batch.classes, None, GRID, CLASSES, affine=batch.affine).dense()
    tokens = -(maps * model.token_logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model.class_logits, batch.class_index) + 0.5 * tokens)
