"""The plan's CSV, page and figure say what the plan says; the command works by hand and refuses what is no plan."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.core.files import write_json, write_text
from tokenlabel.core.plan import Plan, plan_study
from tokenlabel.core.study import Study
from tokenlabel.eval.plan_figure import collect_bars, draw_plan, plan_figure
from tokenlabel.eval.plan_table import as_csv, as_markdown
from tokenlabel.eval.style import styled

from .test_figures import assert_text_on_page


@pytest.fixture
def plan(raw_config: dict[str, Any]) -> Plan:
    return plan_study(Study.plan(raw_config), Path("/nonexistent"))


def test_the_csv_has_a_line_for_every_target(plan: Plan) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(plan))))
    assert [line["target"] for line in lines] == [row.target for row in (*plan.rows, *plan.unselected)]
    total = lines[len(plan.rows) - 1]
    assert float(total["gpu_hours"]) == pytest.approx(plan.rows[-1].gpu_hours, abs=0.01)
    stages = ("label", "train", "finetune", "segment", "evaluate")
    for line in lines:
        parts = sum(float(line[f"{stage}_gpu_hours"]) for stage in stages)
        assert parts == pytest.approx(float(line["gpu_hours"]), abs=0.03)
        assert float(line["cost"]) == pytest.approx(float(line["gpu_hours"]) * 3.06, abs=0.02)
        assert (line["gpu"], line["gpus"], line["currency"]) == ("v100", "8", "USD")
        assert float(line["wall_hours"]) >= float(line["wall_hours_least"])
        assert line["command"].startswith("snakemake ") or line["target"] == "total"


def test_the_page_states_every_coefficient_and_its_evidence(plan: Plan) -> None:
    page = as_markdown(plan)
    assert "On 8 v100, 1 of them a training, at 3.06 USD a GPU hour." in page
    assert "| **v100** | 125 | 18.8 | 19.4 | published |" in page
    for name, gpu in plan.settings["gpu_types"].items():
        (line,) = [line for line in page.splitlines() if line.startswith((f"| {name} |", f"| **{name}** |"))]
        assert line.endswith(f"| {gpu['evidence']} | {gpu['source']} |")
    assert "None yet: no job is finished." in page
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(plan.rows) + len(plan.unselected) + 2 + 7


def test_the_page_lists_corrections(raw_config: dict[str, Any], tmp_path: Path) -> None:
    study = Study.plan(raw_config)
    labels = study.selected_labels[6]
    write_json(tmp_path / labels.markers[0], {})
    write_text(
        tmp_path / f"benchmarks/{labels.markers[0].removeprefix('results/').replace('.done', '.tsv')}", "s\n1000\n"
    )
    page = as_markdown(plan_study(study, tmp_path))
    assert "| label nfnet_f6 | 1 | 1.24 |" in page
    assert "1 measured, 63 corrected x1.24 from 1 job" in page


def test_the_bars_add_up_to_the_total(plan: Plan) -> None:
    bars = collect_bars(plan)
    assert bars[0].name == "labels of 9 annotators"
    assert [bar.name for bar in bars[1:]] == [row.target for row in plan.rows[9:22]]
    assert sum(sum(bar.additional.values()) for bar in bars) == pytest.approx(plan.rows[-1].gpu_hours)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_is_drawn(raw_config: dict[str, Any], tmp_path: Path, seeds: int) -> None:
    for experiment in raw_config["experiments"].values():
        experiment["seeds"] = list(range(seeds))
    planned = plan_study(Study.plan(raw_config), tmp_path)
    draw_plan(planned, tmp_path / "plan.png")
    with styled():
        figure = plan_figure(planned)
        assert_text_on_page(figure)
        keys = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert "labels" in keys
        assert len(keys) == 5
    with Image.open(tmp_path / "plan.png") as picture:
        assert min(picture.size) > 500
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
        assert {(0, 0x9E, 0x73), (0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours  # labels, training, fine-tuning
        pixels = np.asarray(picture.convert("RGB"))
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge == 255).all() for edge in edges)  # no name is cut off


def test_the_command_prints_a_studys_page(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--configfile", str(repository / "demo" / "config.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# What this study costs\n")
    assert "| ablation_annotators | 16 | 16 |" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "plan.json: the plan is missing"),
        ("{", "plan.json: the plan cannot be read"),
        ('{"rows": []}', "plan.json: not a plan of this version"),
        (
            '{"rows": [{"target": 1}], "corrections": [], "notes": [], "settings": {}}',
            "plan.json: not a plan of this version",
        ),
    ],
    ids=["missing", "half", "no plan", "another version"],
)
def test_what_is_no_plan_is_one_line(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        write_text(tmp_path / "plan.json", content)
    assert main(["plan", "--spec", str(tmp_path / "plan.json"), "--csv", str(tmp_path / "plan.csv")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "plan.csv").exists()
