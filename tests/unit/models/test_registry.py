from __future__ import annotations

import pytest
import torch

from tokenlabel.core.errors import ConfigError
from tokenlabel.models import create_model, model_names
from tokenlabel.models.lvvit import LVVIT_PRESETS
from tokenlabel.models.t2t import T2T_PRESETS


def test_names() -> None:
    assert set(model_names()) >= {"lvvit_t", "lvvit_s", "lvvit_m", "lvvit_l", "t2t_vit_14", "t2t_vit_19", "t2t_vit_24"}
    assert model_names() == [*LVVIT_PRESETS, *T2T_PRESETS]
    for name in model_names():
        with torch.device("meta"):
            model = create_model(name, 3, 32)
        assert (model.num_classes, model.image_px, model.grid) == (3, 32, (2, 2))
        assert model.training


def test_unknown_name_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'lvvit_x'.*lvvit_s.*timm/<name>"):
        create_model("lvvit_x")


@pytest.mark.parametrize("name", ["lvvit_s", "t2t_vit_14", "timm/resnet18"])
def test_unknown_setting_is_refused_with_the_legal_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model {name}: unknown setting 'stochastic_dept'.*mean 'stochastic_depth'"):
        create_model(name, stochastic_dept=0.1)
