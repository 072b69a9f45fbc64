"""The public format: golden shards stay readable, and docs/label-format.md is enough to read them without this package."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tokenlabel.core.seeds import sample_id
from tokenlabel.labels import LabelStore
from tokenlabel.labels.shards import read_marker

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
FIELDS = ("scores", "classes", "tail", "image_size", "status")


def expected_of(case: str) -> dict[str, Any]:
    with np.load(GOLDEN / case / "expected.npz") as arrays:
        return dict(arrays)


def test_there_are_golden_shards_of_every_kind() -> None:
    assert CASES == ["compact", "compact-tail-32bit", "fast", "fast-tail-32bit"]


@pytest.mark.parametrize("case", CASES)
def test_golden_shards_are_read(case: str) -> None:
    expected = expected_of(case)
    store = LabelStore(GOLDEN / case, split="train")
    assert [summary.images for summary in store.verify()] == [4, 3]
    assert store.attributes.storage == case.split("-")[0]
    rows = store.get_many(expected["sample_id"])
    for name in FIELDS:
        found = getattr(rows, name)
        if name not in expected:
            assert found is None
        else:
            np.testing.assert_array_equal(found, expected[name])
            assert found.dtype == expected[name].dtype
    assert [text.encode() for text in rows.reason] == expected["reason"].tolist()
    for place, identifier in enumerate(expected["sample_id"].tolist()):
        assert identifier == sample_id(f"class{place % 2}/photo.{place}.JPEG")
        assert store[identifier].status == expected["status"][place]


def test_golden_shards_are_the_bytes_that_were_committed() -> None:
    for shard in sorted(GOLDEN.glob("*/*.h5")):
        assert hashlib.sha256(shard.read_bytes()).hexdigest() == read_marker(shard)["sha256"]


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "label-format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_reader_of_the_page(page: str, case: str) -> None:
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert "tokenlabel" not in code
    expected = expected_of(case)
    read = 0
    for shard in sorted((GOLDEN / case).glob("*.h5")):
        with h5py.File(shard) as file:
            for identifier in file["sample_id"][:].tolist():
                place = expected["sample_id"].tolist().index(identifier)
                scores, classes, tail = scope["read_label"](file, f"class{place % 2}/photo.{place}.JPEG")
                np.testing.assert_array_equal(scores, expected["scores"][place])
                np.testing.assert_array_equal(classes, expected["classes"][place])
                if "tail" in expected:
                    np.testing.assert_array_equal(tail, expected["tail"][place])
                else:
                    assert tail is None
                read += 1
    assert read == 7


def test_the_example_of_the_page_runs_in_a_process_of_its_own(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = blocks[0] + blocks[1] + "\nassert scores.shape == (3, 4, 2)\n"
    subprocess.run([sys.executable, "-c", code], cwd=GOLDEN / "compact", check=True, timeout=60)


def test_the_page_names_every_attribute_and_data_set(page: str) -> None:
    with h5py.File(next((GOLDEN / "compact").glob("*.h5"))) as file:
        for name in [*file.attrs, *file]:
            assert f"`{name}`" in page, name
