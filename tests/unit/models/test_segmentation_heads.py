"""The heads on maps of their own: shapes, gradients, what reaches a pixel, batches of one, and descriptions that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from tokenlabel.core.errors import ConfigError
from tokenlabel.models.segmentation_heads import (
    FCNHead,
    PooledBatchNorm,
    PyramidPooling,
    Rescaling,
    UPerNetHead,
    create_auxiliary,
    create_head,
    levels_read,
    read_head,
)

from .segmenters import fcn, upernet


def maps(*shapes: tuple[int, int, int], batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, *shape) for shape in shapes]


@pytest.mark.parametrize(
    ("scale", "size"), [(4.0, (20, 28)), (2.0, (10, 14)), (1.0, (5, 7)), (0.5, (3, 4))], ids=lambda value: str(value)
)
def test_rescaling(scale: float, size: tuple[int, int]) -> None:
    layer = Rescaling(6, 10, scale)
    found = layer(torch.randn(2, 6, 5, 7))
    assert found.shape == (2, 10, *size)
    assert (found >= 0).all()


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_a_rescaled_cell_holds_its_own_token_only(scale: float) -> None:
    """Transposed convolutions do not overlap: no blur, and no checkerboard, between tokens."""
    layer = Rescaling(3, 3, scale).eval()
    level = torch.zeros(1, 3, 4, 5)
    blank = layer(level)
    level[0, :, 1, 2] = 1.0
    changed = (layer(level) != blank).any(dim=1)[0].nonzero()
    side = int(scale)
    assert changed[:, 0].min() >= side
    assert changed[:, 0].max() < 2 * side
    assert changed[:, 1].min() >= 2 * side
    assert changed[:, 1].max() < 3 * side


def test_fcn_reads_the_last_level_alone() -> None:
    head = FCNHead(6, 4, channels=8, convolutions=2, concatenate_input=True, dropout=0.0).eval()
    levels = maps((5, 3, 3), (6, 6, 8))
    found = head(levels)
    assert found.shape == (2, 4, 6, 8)
    assert torch.equal(found, head([torch.randn(2, 5, 9, 9), levels[1]]))


def test_upernet_is_at_the_finest_level_and_reads_all() -> None:
    head = UPerNetHead((5, 6, 7), 4, channels=8, pool_sizes=(1, 2), dropout=0.0).eval()
    levels = [level.requires_grad_() for level in maps((5, 8, 12), (6, 4, 6), (7, 2, 3))]
    found = head(levels)
    assert found.shape == (2, 4, 8, 12)
    found.square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)


def test_pyramid_pooling_brings_the_far_corner_to_every_cell() -> None:
    """A 3x3 convolution alone sees one cell further; the average over the image sees all."""
    pooling = PyramidPooling(3, 4, (1,)).eval()
    level = torch.randn(1, 3, 12, 12, requires_grad=True)
    pooling(level)[0, :, 0, 0].sum().backward()
    assert level.grad is not None
    assert level.grad[0, :, -1, -1].abs().sum() > 0
    none = PyramidPooling(3, 4, ()).eval()
    level.grad = None
    none(level)[0, :, 0, 0].sum().backward()
    assert level.grad[0, :, 2:, 2:].abs().sum() == 0


def test_the_top_down_path_is_torchvisions_where_the_two_agree() -> None:
    """Maps of one size need no upsampling; then UPerNet's middle is torchvision's FPN with norms and ReLU of our layers."""
    head = UPerNetHead((5, 6), 3, channels=8, pool_sizes=(), dropout=0.0).eval()
    levels = maps((5, 4, 4), (6, 4, 4))
    theirs = FeaturePyramidNetwork([5, 8], 8)
    theirs.inner_blocks = nn.ModuleList([head.laterals[0], nn.Identity()])
    theirs.layer_blocks = nn.ModuleList([head.smoothings[0], nn.Identity()])
    fine, coarse = theirs({"fine": levels[0], "coarse": head.pooling(levels[1])}).values()
    expected = head.classifier(head.joint(torch.cat((coarse, fine), dim=1)))
    torch.testing.assert_close(head(levels), expected)


def test_a_batch_of_one_pooled_to_one_cell_trains() -> None:
    plain, pooled = nn.BatchNorm2d(4), PooledBatchNorm(4)
    one = torch.randn(1, 4, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        plain(one)
    statistics = pooled.running_mean, pooled.running_var
    torch.testing.assert_close(pooled(one), one / (1 + pooled.eps) ** 0.5)
    assert torch.equal(torch.stack(statistics), torch.stack((torch.zeros(4), torch.ones(4))))  # type: ignore[arg-type]
    several = torch.randn(3, 4, 1, 1)
    assert torch.equal(pooled(several), plain(several))  # and as torch's from two values on
    assert torch.equal(pooled.running_mean, plain.running_mean)  # type: ignore[arg-type]
    head = UPerNetHead((5, 6), 3, channels=8, pool_sizes=(1, 2), dropout=0.1)
    head(maps((5, 4, 4), (6, 4, 4), batch=1)).sum().backward()
    assert all(value.grad is not None for value in head.parameters())


def test_several_processes_can_have_synchronised_norms() -> None:
    head = nn.SyncBatchNorm.convert_sync_batchnorm(UPerNetHead((5, 6), 3, channels=8, pool_sizes=(1,), dropout=0.1))
    kinds = {type(module) for module in head.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}


def test_all_classes_begin_nearly_equal() -> None:
    for head in (
        create_head(read_head(upernet(8, None)), (5, 6, 7, 8), 150),
        create_head(read_head(fcn(8)), (5, 6), 150),
    ):
        found = head.eval()(
            maps(*((width, 4, 4) for width in ((5, 6, 7, 8) if isinstance(head, UPerNetHead) else (5, 6))))
        )
        loss = nn.functional.cross_entropy(found, torch.randint(150, (2, 4, 4)))
        assert loss.item() == pytest.approx(torch.tensor(150.0).log().item(), abs=0.05)


@pytest.mark.parametrize(
    ("head", "read"),
    [(fcn(), [0, 1]), (fcn(auxiliary=None), [1]), (upernet(), [0, 1, 2, 3]), (upernet(auxiliary=None), [0, 1, 2, 3])],
)
def test_levels_that_are_read(head: dict[str, Any], read: list[int]) -> None:
    described = read_head(head)
    assert levels_read(described) == read
    auxiliary = create_auxiliary(described, (5, 6, 7, 8)[: len(head["levels"]["scales"])], 3)
    assert (auxiliary is None) == (head["auxiliary"] is None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "fpn"}, r"head\.kind is 'fpn': Input should be 'fcn' or 'upernet'"),
        ({"pool_sizes": [1]}, r"head: pool_sizes: only with kind upernet"),
        ({"channels": 0}, r"head\.channels is 0: Input should be greater than or equal to 1"),
        (
            {"levels": {"blocks": "late", "scales": [3.0]}},
            r"head\.levels: scales: 3 is not legal\. Legal: 4, 2, 1, 0\.5",
        ),
        ({"auxiliary": {"level": 2}}, r"head\.auxiliary\.channels: Field required"),
        ({"surprise": 1}, r"head\.surprise is 1: Extra inputs are not permitted"),
    ],
)
def test_descriptions_that_are_wrong(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_head({**fcn(), **changed})
    assert "\n" not in str(caught.value)
