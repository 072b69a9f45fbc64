from __future__ import annotations

import pytest
import torch

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox
from tokenlabel.models.timm_layouts import TokenLayout, timm_says


@pytest.mark.parametrize("axes", ["NCHW", "NHWC", "NLC"])
def test_layouts_flatten_and_mix_row_by_row(axes: str) -> None:
    tokens = torch.randn(2, 24, 5)  # 4 rows of 6
    shaped = {
        "NLC": tokens,
        "NHWC": tokens.view(2, 4, 6, 5),
        "NCHW": tokens.view(2, 4, 6, 5).permute(0, 3, 1, 2).contiguous(),
    }[axes]
    layout = TokenLayout(axes, (4, 6))
    assert torch.equal(layout.flatten(shaped), tokens)
    mixed = layout.flatten(layout.mix(shaped, MixBox((0, 1), (1, 3), (2, 3)))).view(2, 4, 6, 5)
    own, partner = tokens.view(2, 4, 6, 5), tokens.flip(0).view(2, 4, 6, 5)
    assert torch.equal(mixed[:, :2, 2:], partner[:, :2, 2:])
    assert torch.equal(mixed[:, 2:], own[:, 2:])
    assert torch.equal(mixed[:, :2, :2], own[:, :2, :2])


def test_prefix_tokens_are_left_out() -> None:
    tokens = torch.randn(1, 6, 3)
    assert torch.equal(TokenLayout("NLC", (2, 2), prefix=2).flatten(tokens), tokens[:, 2:])


def test_what_timm_says_becomes_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^here: two lines$") as caught, timm_says("here"):
        raise AssertionError("two\n  lines")
    assert caught.value.__suppress_context__
    with pytest.raises(ConfigError, match=r"^here: AssertionError$"), timm_says("here"):
        raise AssertionError
    with pytest.raises(ZeroDivisionError), timm_says("a bug of ours stays one"):
        _ = 1 / 0
