"""Which number of the paper stands beside a row: by reference, by name, or a user's own; and the plans of what exists so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.files import write_json
from tokenlabel.core.so_far import plan_comparison, plan_so_far
from tokenlabel.core.study import Study

Raw = dict[str, Any]


def test_every_row_of_the_papers_tables_has_its_number(raw_config: Raw) -> None:
    study = Study.plan(raw_config)
    sources = {
        f"{table.name}.{row.name}": row.paper.source for table in study.tables.values() for row in table.rows
    }  # fmt: skip
    assert [name for name, source in sources.items() if source is None] == ["ablation_geometry.released"]
    for table in study.tables.values():
        for row in table.rows:
            if row.paper.source and row.paper.source.startswith("Table"):
                assert row.paper.top1 is not None, row.name


def test_table_4_has_both_readings_of_448_pixels(raw_config: Raw) -> None:
    rows = {row.name: row for row in Study.plan(raw_config).tables["main"].rows}

    def chain(name: str) -> list[int]:
        return [run.spec["image_px"] for run in rows[name].run.chain]  # type: ignore[union-attr]

    assert {name: (chain(name), rows[name].paper_top1) for name in rows if name.startswith("lvvit_l")} == {
        "lvvit_l": ([288], 85.3), "lvvit_l_448": ([288, 448], 85.9), "lvvit_l_512": ([288, 448, 512], 86.4),
        "lvvit_l_at_448": ([448], 86.2), "lvvit_l_at_448_512": ([448, 512], 86.4),
    }  # fmt: skip


def test_a_row_carries_all_that_the_paper_says_of_it(raw_config: Raw) -> None:
    rows = {row["name"]: row for row in Study.plan(raw_config).tables["main"].as_json()["rows"]}
    row = rows["lvvit_l_at_448"]
    assert {key: value for key, value in row.items() if key.startswith("paper_")} == {
        "paper_top1": 86.2, "paper_real_top1": 89.9, "paper_parameters_m": 150.0, "paper_gmacs": 157.2, "paper_source": "Table 4",
    }  # fmt: skip


def test_a_number_of_ones_own_needs_no_paper(raw_config: Raw) -> None:
    raw_config["experiments"]["mine"] = {
        "question": "Better?", "paper": "none", "seeds": [0], "grid": {"train.token_weight": [0.25, 0.5]},
        "paper_top1": {"token_weight_0_5": 80.0}, "rows": [{"name": "other", "set": {}, "paper_top1": 79.0}],
    }  # fmt: skip
    rows = Study.plan(raw_config).tables["mine"].rows
    assert {row.name: (row.paper_top1, row.paper.source) for row in rows} == {
        "other": (79.0, "configuration"), "token_weight_0_25": (None, None), "token_weight_0_5": (80.0, "configuration"),
    }  # fmt: skip


def set_row(**values: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["experiments"]["ablation_residual"]["rows"][0].update(values)


def set_experiment(**values: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["experiments"]["ablation_participation"].update(values)


def set_annotator(**values: Any) -> Callable[[Raw], None]:
    return lambda raw: raw["annotators"]["nfnet_f6"].update(values)


MISTAKES: list[tuple[str, Callable[[Raw], None], list[str]]] = [
    (
        "unknown row", set_row(paper_row="10/scale_4"),
        ["experiments.ablation_residual.rows.scale_1.paper_row", "unknown row of Table 10 'scale_4'", "scale_1, scale_2, scale_3"],
    ),
    ("unknown table", set_row(paper_row="7/scale_1"), ["rows.scale_1.paper_row", "unknown table of the paper '7'", "fig4_left"]),
    ("two numbers", set_row(paper_top1=80.0), ["experiments.ablation_residual.rows", "'scale_1'", "give one of them"]),
    ("above 100 %", set_row(paper_row=None, paper_top1=101), ["paper_top1", "101"]),
    (
        "two of an experiment", set_experiment(paper_top1={"lvvit_s_participation_0_2": 80.0}),
        ["experiments.ablation_participation", "paper_top1 and paper_rows", "null"],
    ),
    ("unknown table of an experiment", set_experiment(paper_rows="fig9"), ["ablation_participation.paper_rows", "'fig9'", "fig5"]),
    ("unknown table of others", set_experiment(paper_only="fig9"), ["ablation_participation.paper_only", "'fig9'", "fig5"]),
    ("unknown row of an annotator", set_annotator(paper_row="fig4_right/nfnet_f7"), ["annotators.nfnet_f6", "'nfnet_f7'"]),
    (
        "a table that is another's", lambda raw: raw["experiments"].update(plan=raw["experiments"]["ablation_residual"]),
        ["experiments.plan", "results/plan.csv is another result", "comparison_cait"],
    ),
    ("two numbers of an annotator", set_annotator(paper_top1=86.0), ["annotators.nfnet_f6", "give one of them"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_about_the_paper_is_one_line(
    raw_config: Raw, change: Callable[[Raw], None], expected: list[str]
) -> None:
    change(raw_config)
    with pytest.raises(ConfigError) as caught:
        Study.plan(raw_config)
    for part in expected:
        assert part in str(caught.value)


def test_a_table_may_be_written_as_a_number(raw_config: Raw) -> None:
    raw_config["experiments"]["ablation_architectures"]["paper_rows"] = "11"
    before = Study.plan(raw_config).tables["ablation_architectures"].as_json()
    raw_config["experiments"]["ablation_architectures"]["paper_rows"] = 11
    assert Study.plan(raw_config).tables["ablation_architectures"].as_json() == before


def test_a_plan_so_far_changes_with_the_evaluations_and_with_nothing_else(raw_config: Raw, tmp_path: Path) -> None:
    table = Study.plan(raw_config).tables["main"]
    empty, document = plan_so_far(table, tmp_path)
    assert document["found"] == {}
    place = tmp_path / table.inputs[1]
    write_json(place, {"top1": 1.0})
    one, document = plan_so_far(table, tmp_path)
    assert list(document["found"]) == [table.inputs[1]]
    place.touch()
    write_json(tmp_path / "results/runs/another-12345678/seed0/evaluation-12345678.json", {})
    assert plan_so_far(table, tmp_path)[0] == one
    write_json(place, {"top1": 2.0})
    other = plan_so_far(table, tmp_path)[0]
    place.unlink()
    assert plan_so_far(table, tmp_path)[0] == empty
    assert len({empty, one, other}) == 3


def test_the_comparison_is_of_the_row_that_says_so(raw_config: Raw) -> None:
    _, document = plan_comparison(Study.plan(raw_config))
    assert [spec["image_px"] for spec in document["specs"]] == [224, 384]
    assert [row["name"] for row in document["rows"]] == ["lvvit_m_384"]
    raw_config["experiments"]["main"]["rows"] = [{"name": "small", "set": {}}]
    with pytest.raises(ConfigError, match=r"no row of any experiment says paper_row: 4/lvvit_m_384"):
        plan_comparison(Study.plan(raw_config))
