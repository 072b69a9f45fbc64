"""Pages of tables: readable as text, rendered right whatever a label holds, and planned where there is no run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.study import Study
from tokenlabel.eval.markdown import as_markdown, format_table
from tokenlabel.eval.tables import collect_rows

from .test_tables import write_results


def cells(page: str, table: int = 0) -> list[list[str]]:
    """Rows of a page's table, as a renderer cuts them."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", page, flags=re.MULTILINE)[table]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set("-: ")]


def test_a_page_has_every_column_and_caption(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["experiments"]["main"]["seeds"] = [0, 1]
    table = Study.plan(raw_config).tables["main"].as_json()
    write_results(tmp_path, table, top1=70.0)
    page = as_markdown(table, collect_rows(table, tmp_path))
    header, *rows = cells(page)
    by_name = [dict(zip(header, row, strict=True)) for row in rows]
    assert len(rows) == 10
    assert set(header) == {
        "setting", "state", "seeds", "top-1 %", "paper %", "difference", "M parameters", "paper M", "G multiply-adds", "paper G",
        "GPU hours", "checkpoint", "top-5 %", "paper ReaL %", "source",
    }  # fmt: skip
    second = by_name[1]
    assert second["setting"] == "LV-ViT-S"
    assert second["state"] == "done"
    assert second["seeds"] == "2 of 2"
    assert second["top-1 %"] == "71.50 ± 0.71"
    assert (second["paper %"], second["difference"], second["paper ReaL %"]) == ("83.3", "-11.80", "88.1")
    assert (second["M parameters"], second["paper M"], second["G multiply-adds"], second["paper G"]) == (
        "26.15",
        "26",
        "6.57",
        "6.6",
    )
    assert re.fullmatch("[0-9a-f]{12} [0-9a-f]{12}", second["checkpoint"])
    assert page.startswith("# How accurate are the four LV-ViTs")
    assert "Tables 1 and 4." in page
    assert "Validation photographs: 50,000." in page
    assert "Rows: 10 done." in page
    assert "Capped" not in page


def test_methods_that_only_the_paper_has_are_a_table_of_their_own(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = Study.plan(raw_config).tables["main"].as_json()
    page = as_markdown(table, collect_rows(table, tmp_path, complete=False))
    assert "Paper only" in page
    others = cells(page, 1)[1:]
    assert len(others) == 23  # 31 rows of Table 4 less 8 LV-ViTs
    assert ["CaiT-M36 ↑448", "86.3", "90.2", "271", "247.8", "224", "448"] in others
    assert not [row for row in others if "lvvit" in row[0].lower() or "LV-ViT" in row[0]]
    raw_config["dataset"]["name"] = "my_photographs"
    assert Study.plan(raw_config).tables["main"].as_json()["paper_only"] == []


def test_a_row_without_a_run_is_planned_and_empty(raw_config: dict[str, Any], tmp_path: Path) -> None:
    table = Study.plan(raw_config).tables["ablation_annotators"].as_json()
    page = as_markdown(table, collect_rows(table, tmp_path, complete=False))
    header, *rows = cells(page)
    for row in rows:
        line = dict(zip(header, row, strict=True))
        assert line["state"] == "planned"
        assert (
            line["top-1 %"]
            == line["difference"]
            == line["GPU hours"]
            == line["checkpoint"]
            == line["M parameters"]
            == ""
        )
    assert {row[header.index("source")] for row in rows} == {
        "Table 2", "Fig. 4 right, printed in the text", "Fig. 4 right, drawn but not printed",
    }  # fmt: skip
    assert "Validation photographs: none yet." in page


def test_a_cap_is_named_in_the_row_and_below(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["caps"]["epochs"] = 2
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    write_results(tmp_path, table)
    page = as_markdown(table, collect_rows(table, tmp_path))
    header, *rows = cells(page)
    assert all(row[header.index("capped")] == "epochs 300->2" and row[header.index("difference")] == "" for row in rows)
    assert "Capped, so another experiment than the paper's" in page


def test_other_photographs_are_said_to_be_others(raw_config: dict[str, Any], tmp_path: Path) -> None:
    raw_config["dataset"]["name"] = "my_photographs"
    table = Study.plan(raw_config).tables["ablation_residual"].as_json()
    page = as_markdown(table, collect_rows(table, tmp_path, complete=False))
    assert "The paper's numbers are of ImageNet-1k, ours of my_photographs" in page


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("a | b", r"a \| b"),
        ("two\nlines\r\nand a\ttab", "two lines and a tab"),
        ("lvvit_s_384", "lvvit_s_384"),
        ("_slanted_ *bold* `code`", r"\_slanted\_ \*bold\* \`code\`"),
        ("<script>alert(1)</script>", r"\<script>alert(1)\</script>"),
        ("[7,3,8] / [2,2,4]", "[7,3,8] / [2,2,4]"),
        ("[a](http://b)", r"[a]\(http://b)"),
        ("$x$ ~~y~~", r"\$x\$ \~\~y\~\~"),
        ("back\\slash|", r"back\\slash\|"),
        ("猫 ↑384", "猫 ↑384"),
    ],
)  # fmt: skip
def test_labels_of_any_characters_stay_one_cell(label: str, expected: str) -> None:
    page = format_table(["setting", "top-1 %"], [[label, "1.00"]])
    assert cells(page) == [["setting", "top-1 %"], [expected, "1.00"]]
    assert len(page.splitlines()) == 3


def test_columns_are_aligned_as_text() -> None:
    page = format_table(["setting", "top-1 %"], [["short", "1.00"], ["a long label", "100.00"]])
    assert len({len(line) for line in page.splitlines()}) == 1
    assert page.splitlines()[1] == "| ------------ | ------: |"
