"""The tables of docs/ say what the committed result files say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from campaign.faults import FAULTS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """docs/tables.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("docs_tables", REPOSITORY / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_tables"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_are_as_the_result_files_give_them(tables: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text, page.name) == text, "run make docs"


def test_every_described_table_stands_on_a_page(tables: ModuleType) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in tables.TABLES:
        assert text.count(f"<!-- table {name} ") == 1, name


def line(**fields: Any) -> str:
    about = {"commit": "0123456789", "machine": {"processor": "P", "cores": 2}, "when": "2026-01-02T03:04:05+00:00"}
    return json.dumps({**about, **fields}) + "\n"


@pytest.fixture
def storage(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("docs.table_kinds.BENCH", tmp_path)
    return tmp_path / "labels_storage.jsonl"


PAGE = "before\n<!-- table labels_storage -->\nold\n<!-- end -->\nafter\n"


def test_a_table_is_made_of_its_lines(tables: ModuleType, storage: Path) -> None:
    row = {
        "layout": "ours",
        "images_per_s": 12345.6,
        "ratio_to_pt": 17.44,
        "bytes_per_image": 4123.2,
        "write_us_per_image": 250,
    }
    storage.write_text(line(**row))
    made = tables.filled(PAGE, "page.md")
    assert "| ours | 12,346 | 17.4 | 4,123 | 250 |\n" in made
    assert "*Commit 0123456789; P, 2 cores; 2026-01-02.*\n<!-- end -->\nafter\n" in made
    assert "old" not in made
    assert tables.filled(made, "page.md") == made
    storage.write_text(line(**row) + line(**row | {"layout": "floor", "images_per_s": None, "ratio_to_pt": None}))
    assert "| floor |  |  | 4,123 | 250 |\n" in tables.filled(made, "page.md")
    assert tables.filled(made, "page.md") != made


@pytest.mark.parametrize(
    ("page", "lines", "message"),
    [
        (PAGE, "", r"page\.md: a table has no results"),
        (PAGE, line(layout="ours"), r"labels_storage\.jsonl: no 'images_per_s' in a line that has commit, layout"),
        ("<!-- table labels_storage pending -->", line(layout="ours"), "marked pending and there are results"),
        ("<!-- table nothing -->\n<!-- end -->", "", "no table 'nothing'; there are faults, "),
    ],
    ids=["no results", "no field", "pending with results", "unknown"],
)
def test_what_a_page_may_not_have(tables: ModuleType, storage: Path, page: str, lines: str, message: str) -> None:
    storage.write_text(lines)
    with pytest.raises(tables.TableError, match=message):
        tables.filled(page, "page.md")


def test_faults_are_counted_and_holes_refused(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docs.table_kinds.CAMPAIGN", tmp_path)
    for name, fault in FAULTS.items():
        count = 50 if fault.place == "maps" else 1
        held = [count] * (fault.trials - 1) + [count - 1]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(line(seed=s, count=count, held=h, elapsed_s=10.0 + s) for s, h in enumerate(held))
        )
    page = "<!-- table faults -->\n<!-- end -->"
    made = tables.filled(page, "page.md")
    (flips,) = [row for row in made.splitlines() if "one bit flipped, anywhere" in row]
    assert "| 1,000 |" in flips
    assert flips.endswith("| 999 | 0.39 | 0.58 |")
    whole = (tmp_path / "kill_job.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kill_job.jsonl").write_text("".join(whole[:-1]))
    with pytest.raises(tables.TableError, match=r"kill_job\.jsonl: 49 of 50 result lines; run make campaign"):
        tables.filled(page, "page.md")
