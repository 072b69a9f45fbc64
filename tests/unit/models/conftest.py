from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tokenlabel.models import TokenModel, create_model

TINY = {"depth": 2, "width": 24, "heads": 2}


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Callable[..., TokenModel]:
    """Makes a small LV-ViT (or another preset) with a 4 x 4 grid and 5 classes."""

    def make(name: str = "lvvit_s", num_classes: int = 5, image_px: int = 64, **settings: object) -> TokenModel:
        return create_model(name, num_classes, image_px, **{**TINY, **settings})

    return make
