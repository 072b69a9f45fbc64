from __future__ import annotations

from typing import Any

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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "lvvit_x",
            r"unknown model 'lvvit_x'. Did you mean 'lvvit_.' or .* Legal: lvvit_t, .*t2t_vit_14.*, timm/<name>",
        ),
        ("deit_small_patch16_224", "it is one of timm's. Write 'timm/deit_small_patch16_224'."),
        ("deit_small_patch16_224.fb_in1k", "Write 'timm/deit_small_patch16_224.fb_in1k'."),
        ("deit_smal_patch16_224", "Did you mean 'timm/deit_small_patch16_224' or .* Legal: lvvit_t"),
        ("", "unknown model ''. Legal: lvvit_t"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_legal_ones(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        create_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lvvit_s", "t2t_vit_14", "timm/resnet18"])
def test_unknown_setting_is_refused_with_the_legal_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model {name}: unknown setting 'stochastic_dept'.*mean 'stochastic_depth'"):
        create_model(name, stochastic_dept=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": "6"}, "depth is '6'; expected a value like the preset's, 16"),
        ({"depth": 6.5}, "depth is 6.5"),
        ({"mlp_ratio": None}, "mlp_ratio is None; expected a value like the preset's, 3.0"),
        ({"stem_kernels": 7}, "stem_kernels is 7"),
        ({"token_score_weight": float("nan")}, "token_score_weight is nan"),
        ({"num_classes": "5"}, "num_classes is '5'; it must be an integer"),
        ({"image_px": 64.0}, "image_px is 64.0; it must be an integer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_of_another_kind_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"model lvvit_s: {words}"):
        create_model("lvvit_s", **settings)
