"""Sources of recipes: every value of config.yaml has one, and an overlay's values are named by file and line."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from tokenlabel.core.config import Recipe
from tokenlabel.core.recipe_sources import read_recipe_sources

SOURCE = re.compile(
    r"Table \d|Fig\. \d|section \d|appendix [AB]|equation \d|released code|ours|not mentioned", re.IGNORECASE
)


def test_every_value_of_every_recipe_has_a_meaning_and_a_source(repository: Path, raw_config: dict[str, Any]) -> None:
    sources = read_recipe_sources([repository / "config.yaml"])
    assert sources.meanings.keys() == Recipe.model_fields.keys()
    assert sources.origins.keys() == raw_config["recipes"].keys()
    for key, meaning in sources.meanings.items():
        assert len(meaning) > 3, key
    for name, origins in sources.origins.items():
        assert origins.keys() == Recipe.model_fields.keys(), name
        for key, origin in origins.items():
            assert SOURCE.match(origin.words), f"{name}.{key}: {origin.words!r}"


def test_the_manual_states_units_and_legal_values(repository: Path) -> None:
    """The words that a type declares stand in the manual too; a new choice cannot be added in silence."""
    meanings = read_recipe_sources([repository / "config.yaml"]).meanings
    for key, field in Recipe.model_fields.items():
        if typing.get_origin(field.annotation) is Literal:
            for choice in typing.get_args(field.annotation):
                assert re.search(rf"\b{choice}\b", meanings[key]), f"{key}: {choice}"
    for key, unit in {"epochs": "epochs", "batch_size": "photographs", "cache_short_side_px": "pixels"}.items():
        assert unit in meanings[key]


FILES = {
    "base": """
recipes:
  first: &first
    epochs: 300   # epochs; one more, >= 1; Table 7
    crop: [0.1,
      1.0]        # share of the area,
                  #   in (0, 1]; released code
    mix: none     # kind; ours

  second:
    <<: *first
    mix: cutmix   # not mentioned; ours
""",
    "overlay": """
caps:
  epochs: 2
recipes:
  first:
    mix: mixup    # tried; and kept
  second: {epochs: 4, crop: [1, 1]}
  third: &third
    epochs: 5
  fourth: {<<: *third, mix: none}
""",
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return [tmp_path / f"{name}.yaml" for name in FILES]


def test_comments_are_read_across_lines_merges_and_files(files: list[Path]) -> None:
    sources = read_recipe_sources(files)
    assert sources.meanings == {
        "epochs": "epochs; one more, >= 1", "crop": "share of the area, in (0, 1]", "mix": "kind",
    }  # fmt: skip
    found = {
        f"{name}.{key}": (origin.file.stem, origin.line, origin.words)
        for name, origins in sources.origins.items()
        for key, origin in origins.items()
    }
    assert found == {
        "first.epochs": ("base", 4, "Table 7"),
        "first.crop": ("base", 5, "released code"),
        "first.mix": ("overlay", 6, "tried; and kept"),
        "second.epochs": ("overlay", 7, ""),
        "second.crop": ("overlay", 7, ""),
        "second.mix": ("base", 12, "not mentioned; ours"),
        "third.epochs": ("overlay", 9, ""),
        "fourth.epochs": ("overlay", 9, ""),
        "fourth.mix": ("overlay", 10, ""),
    }
    assert {key: origin.line for key, origin in sources.caps.items()} == {"epochs": 3}
