"""What the report shows of a study, and what it takes for damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.report_contents import (
    PNG_END,
    PNG_START,
    as_rst,
    capped_words,
    category_of,
    damage,
    inert,
    overlays_place,
    report_results,
    whole,
    whole_evaluations,
)
from tokenlabel.core.study import Study


@pytest.mark.parametrize(
    ("paper", "category"),
    [
        ("Table 2", "Table  2, beta"),
        ("Tables 1 and 4", "Table  1 and 4, beta"),
        ("Table 11", "Table 11, beta"),
        ("Fig. 4 left", "Fig.  4 left, beta"),
        ("none (ours)", "Not in the paper, beta"),
        ("section 3.2", "Section 3.2, beta"),
        ("Table 3: `x` </script>", "Table  3 x script, beta"),
    ],
)
def test_a_tables_folder_is_the_papers_table(raw_config: dict[str, Any], paper: str, category: str) -> None:
    raw_config["experiments"] = {
        "ablation_beta": {"question": "?", "paper": paper, "seeds": [0], "rows": [{"name": "one"}]}
    }
    raw_config["select"]["experiments"] = ["ablation_beta"]
    assert category_of(Study.plan(raw_config).tables["ablation_beta"]) == category


def test_every_table_of_the_paper_is_there_once_and_says_what_makes_it(raw_config: dict[str, Any]) -> None:
    raw_config["select"]["experiments"] = ["main"]
    results = report_results(Study.plan(raw_config))
    names = [result.name for result in results]
    assert len(set(names)) == len(names)
    assert {result.name for result in results if result.selected} == {
        "accuracy_parameters", "main", "curves_main", "label_fidelity", "label_maps",
    }  # fmt: skip
    assert {"ablation_residual", "curves_ablation_residual", "plan", "published", "so_far"} <= set(names)
    for result in results:
        assert result.command == f"snakemake {result.files[0]}"
        assert result.table in ("", *result.files)


def test_two_results_of_a_folder_are_never_called_the_same(raw_config: dict[str, Any]) -> None:
    kinds = {".csv": "data (CSV)", ".png": "figure"}
    called = []
    study = Study.plan(raw_config)
    for result in report_results(study):
        if result.name.startswith("curves_"):
            called.append((result.category, result.shown_as("training curves")))
            continue
        for file in map(Path, result.files):
            if file.parts[1] == "segmentation":  # a page of overlays
                called.append(overlays_place(study, file.parts[2], file.parts[3].removeprefix("seed")))
            else:
                called.append((result.category, result.shown_as(kinds[file.suffix])))
        called += [(result.category, result.shown_as("table"))] if result.table else []
    assert len(set(called)) == len(called)


def test_captions_say_what_caps_changed(raw_config: dict[str, Any]) -> None:
    assert capped_words(Study.plan(raw_config).tables["main"]) == ""
    raw_config["caps"]["epochs"] = 3
    assert "epochs 300->3" in capped_words(Study.plan(raw_config).tables["main"])


def test_texts_carry_no_markup_and_end_no_script() -> None:
    assert "</script" not in inert("a </script> b")
    assert inert("a </script> b").replace("\u2060", "") == "a </script> b"
    from docutils.core import publish_parts

    text = "*a* `b <javascript:alert(1)>`_ |c| d_ **e** [1]_ \\ :math:`x` </script>\n\n.. raw:: html"
    body = publish_parts(f"**{as_rst(text)}**", writer="html", settings_overrides={"report_level": 1})["body"]
    assert body.startswith("<p><strong>*a* `b ")
    assert "<a " not in body
    assert "system-message" not in body


PNG = PNG_START + b"pixels" + PNG_END


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"a,b\n1,2\n", None),
        ("a.csv", b'a,b\n"1,\n2",3\n', None),
        ("a.csv", b"", "empty"),
        ("a.csv", b"a,b\n1,2", "cut off in its last line"),
        ("a.csv", b"a,b\n1\n", "line 2 has 1 cells, the heading 2"),
        ("a.csv", b"a\n\xff\n", "no CSV file"),
        ("a.csv", b"a\n\0\n", "no CSV file"),
        ("a.png", PNG, None),
        ("a.png", PNG[:-1], "no whole PNG file"),
        ("a.png", b"a,b\n", "no whole PNG file"),
    ],
)
def test_damage_is_seen_and_named(tmp_path: Path, name: str, content: bytes, said: str | None) -> None:
    path = tmp_path / name
    assert damage(path) == "missing"
    path.write_bytes(content)
    found = damage(path)
    assert found is None if said is None else found is not None and found.startswith(said)
    assert whole([str(path)]) == (said is None)
    assert damage(tmp_path) is not None


def test_table_12_is_no_part_of_a_study_without_its_row(raw_config: dict[str, Any]) -> None:
    assert "comparison_cait" in {result.name for result in report_results(Study.plan(raw_config))}
    for experiment in raw_config["experiments"].values():
        for row in experiment.get("rows") or []:
            if row.get("paper_row") == "4/lvvit_m_384":
                del row["paper_row"]
    assert "comparison_cait" not in {result.name for result in report_results(Study.plan(raw_config))}


def test_a_table_of_segmentation_has_a_page_of_views_of_its_first_row_with_token_labels(
    raw_config: dict[str, Any],
) -> None:
    tables = Study.plan(raw_config).segmentation_tables
    results = {result.name: result for result in report_results(Study.plan(raw_config))}
    viewed = tables["segmentation"].viewed
    assert viewed is not None
    assert viewed.name == next(row.run.name for row in tables["segmentation"].rows if row.name == "lvvit_s_fcn_token")
    assert results["views_segmentation"].files == ("results/figures/segmentation_views.png",)
    assert results["views_segmentation"].category == results["segmentation"].category
    assert tables["segmentation_published"].viewed is None  # no run of a classifier: nothing to show beside it
    assert "views_segmentation_published" not in results


@pytest.mark.parametrize(
    ("content", "sound"), [(None, True), ('{"top1": 80.0}', True), ('{"top1": NaN}', False), ("{", False), ("", False)]
)
def test_evaluations_of_which_a_table_so_far_can_be_made(tmp_path: Path, content: str | None, sound: bool) -> None:
    path = tmp_path / "evaluation.json"
    if content is not None:
        path.write_text(content)
    assert whole_evaluations([str(path)]) is sound
