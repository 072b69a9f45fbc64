"""The section `segmentation` of the configuration: each mistake is one line with the key's path, the value and what is legal."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tokenlabel.core.config import load_config
from tokenlabel.core.errors import ConfigError


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The configuration with one key set; a path's parts are joined by dots."""
    raw = copy.deepcopy(raw)
    section: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        section = section[int(part) if part.isdigit() else part]
    section[last] = value
    return raw


MISTAKES = [
    ("segmentation.heads.fcn.chanels", 8, "unknown key (value 8). Did you mean 'channels'?"),
    ("segmentation.heads.fcn.kind", "fpn", "'fpn' is not legal. Did you mean 'fcn'? Legal: fcn, upernet"),
    ("segmentation.heads.fcn.pool_sizes", [1], "pool_sizes: only with kind upernet"),
    ("segmentation.heads.upernet.pool_sizes", None, "kind upernet needs pool_sizes"),
    ("segmentation.heads.fcn.levels", {"blocks": "even", "scales": [3, 1]}, "3 is not legal. Legal: 4, 2, 1, 0.5"),
    ("segmentation.heads.fcn.levels", {"blocks": [4], "scales": [1, 1]}, "must be of equal length"),
    ("segmentation.heads.fcn.levels", {"blocks": [8, 4], "scales": [1, 1]}, "must grow"),
    ("segmentation.heads.fcn.auxiliary.level", 4, "auxiliary.level 4 must be below the number of levels, 2"),
    ("segmentation.dataset.ignore_id", 150, "ignore_id 150 is the id of a class"),
    ("segmentation.dataset.num_classes", 1, "1 is not legal: input should be greater than or equal to 2"),
    ("segmentation.dataset.mask_suffix", "_L.png", "before the dot of its format; leave the format out"),
    ("segmentation.dataset.image_suffix", "left/_rgb", "the end of a file's name; folders are train and val"),
    ("segmentation.recipes.paper.interval_iterations", 3000, "a multiple of interval_iterations 3000; nearest: 159000 or 162000"),
    ("segmentation.recipes.paper.warmup_iterations", 160000, "warmup_iterations 160000 must be below iterations 160000"),
    ("segmentation.recipes.paper.min_learning_rate", 1.0, "min_learning_rate 1 is above learning_rate 6e-05"),
    ("segmentation.recipes.paper.scale_range", [2.0, 0.5], "must be (smallest, largest)"),
    ("segmentation.testing.stride_px", 513, "stride_px 513 is above window_px 512"),
    ("segmentation.testing.scales", [1.0, 1.0], "must differ"),
    ("segmentation.defaults.head", "fpn", "segmentation.defaults.head: unknown head 'fpn'"),
    ("segmentation.defaults.recipe", "papers", "Did you mean 'paper'?"),
    ("segmentation.defaults.backbone", "none", "Legal: trained, random, published"),
    ("segmentation.experiments.segmentation.rows", [], "rows"),
    ("segmentation.experiments.segmentation.seeds", [1, 1], "must differ"),
    ("segmentation.experiments.segmentation.rows.1.against", "nothing", "no other row of that name. Legal: lvvit_s_fcn_hard"),
    ("segmentation.experiments.segmentation.rows.1.name", "lvvit_s_fcn_hard", "row name 'lvvit_s_fcn_hard' stands twice"),
    ("select.segmentation", ["segmentatio"], "unknown experiment of segmentation 'segmentatio'. Did you mean 'segmentation'?"),
    ("caps.segment_crop_px", 8, "8 is not legal"),
    ("segmentation_root", None, "configuration key segmentation_root"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), MISTAKES, ids=[path for path, _, _ in MISTAKES])
def test_a_mistake_is_one_line_with_path_and_legal_values(
    raw_config: dict[str, Any], path: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(changed(raw_config, path, value))
    line = str(caught.value)
    assert said in line
    assert "\n" not in line
    assert line.startswith("configuration key ")


def test_an_experiment_may_not_be_called_as_another_result(raw_config: dict[str, Any]) -> None:
    entries = raw_config["segmentation"]["experiments"]
    for name in ("main", "plan"):
        raw = changed(raw_config, f"segmentation.experiments.{name}", entries["segmentation"])
        with pytest.raises(
            ConfigError, match=rf"segmentation\.experiments\.{name}: results/{name}\.csv is another result"
        ):
            load_config(raw)


def test_a_spec_has_the_keys_of_its_kind_alone(raw_config: dict[str, Any]) -> None:
    heads = load_config(raw_config).segmentation.heads
    fcn, upernet = heads["fcn"].as_spec(), heads["upernet"].as_spec()
    shared = {"kind", "channels", "dropout", "levels", "auxiliary"}
    assert fcn.keys() == shared | {"convolutions", "concatenate_input"}
    assert upernet.keys() == shared | {"pool_sizes"}
    raw = changed(raw_config, "segmentation.heads.fcn.auxiliary", None)
    assert load_config(raw).segmentation.heads["fcn"].as_spec()["auxiliary"] is None
