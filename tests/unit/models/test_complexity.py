from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tokenlabel.models import count_multiply_adds, count_parameters, create_model


class OneAttention(nn.Module):
    """Each image column is a token: nothing but attention with 3 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(images, images, images)


def test_attention_counts_both_products(capfd: pytest.CaptureFixture[str]) -> None:
    assert count_multiply_adds(OneAttention(), 10) == 2 * 3 * 10 * 10 * 10
    assert capfd.readouterr() == ("", "")


def test_parameters() -> None:
    assert count_parameters(OneAttention()) == 7
    assert count_parameters(nn.BatchNorm2d(4)) == 8  # its statistics are no parameters


def test_modes_are_restored() -> None:
    model = create_model("lvvit_t", 3, 32, depth=1, width=8, heads=1).train()
    frozen = model.get_submodule("patch_embed.bn1").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_multiply_adds(model, 32)
    assert model.training
    assert not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
