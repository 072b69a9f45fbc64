"""Overlays as a user writes them: a key that stands twice is named before YAML loses one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.overlays import read_yaml, refuse_repeated_keys

TWICE = [
    ("experiments:\n  mine: {a: 1}\n  other: {}\n  mine: {b: 2}\n", "line 4: 'mine' stands in line 2 of experiments already"),
    ("caps: {epochs: 1}\nselect: {}\ncaps: {images: 2}\n", "line 3: 'caps' stands in line 1 of the file already"),
    ("rows:\n- {name: a}\n- name: b\n  name: c\n", "line 4: 'name' stands in line 3 of rows already"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), TWICE, ids=["experiment", "section", "row"])
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"study\.yaml, {said}, which would be lost\. Rename or remove one\.$"):
        read_yaml(path, "settings")


def test_anchors_merges_and_equal_names_in_different_sections_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "recipes:\n  a: &a {epochs: 1, mix: none}\n  b: {<<: *a, epochs: 2}\n  c: *a\nrows: [{epochs: 1}, {epochs: 2}]\n"
    )
    assert read_yaml(path, "settings")["recipes"]["b"] == {"epochs": 2, "mix": "none"}


def test_what_is_no_yaml_is_left_to_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("a: [")
    refuse_repeated_keys(path)
    refuse_repeated_keys(tmp_path / "missing.yaml")
