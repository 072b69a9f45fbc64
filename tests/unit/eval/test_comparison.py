"""Table 12: our column follows the configuration and the model, whatever the paper says."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.files import write_json
from tokenlabel.core.so_far import plan_comparison
from tokenlabel.core.study import Study
from tokenlabel.eval.comparison import as_csv, as_markdown, compare
from tokenlabel.eval.tables import ResultRow, collect_rows

from .test_tables import result_at


def compared(
    raw_config: dict[str, Any], base: Path, top1: float | None = None
) -> tuple[dict[str, dict[str, str]], str, ResultRow]:
    """Lines of the CSV by setting, the page, and the row."""
    _, plan = plan_comparison(Study.plan(raw_config))
    if top1 is not None:
        for path in plan["rows"][0]["seeds"].values():
            write_json(base / path, result_at(path, top1))
    (row,) = collect_rows(plan, base, complete=False)
    settings = compare(plan["specs"], row)
    lines = csv.DictReader(io.StringIO(as_csv(settings)))
    return {line["setting"]: line for line in lines}, as_markdown(settings, row), row


def test_the_default_configuration_is_the_papers_model(raw_config: dict[str, Any], tmp_path: Path) -> None:
    lines, page, row = compared(raw_config, tmp_path)
    assert row.state == "planned"
    assert len(lines) == 20
    assert {name for name, line in lines.items() if line["agrees"] != "yes"} == {"top1"}
    assert (lines["top1"]["ours"], lines["top1"]["agrees"]) == ("planned", "")
    assert float(lines["params_m"]["ours"]) == pytest.approx(56.03, abs=0.01)  # the released model has 56.025
    assert float(lines["gflops"]["ours"]) == pytest.approx(41.71, abs=0.01)
    assert (lines["params_m"]["paper_lvvit_m"], lines["params_m"]["paper_cait"]) == ("56", "69")
    assert (lines["cutmix"]["ours"], lines["cutmix"]["paper_cait"]) == ("no", "yes")
    assert "planned" in page


def test_our_side_follows_what_is_configured(raw_config: dict[str, Any], tmp_path: Path) -> None:
    settings = raw_config["models"]["lvvit_m"]["settings"]
    settings |= {
        "depth": 3,
        "width": 64,
        "heads": 4,
        "mlp_ratio": 2,
        "residual_scale": 1,
        "stochastic_depth_rule": "fixed",
    }
    raw_config["models"]["lvvit_m"]["stochastic_depth"] = 0.05
    row = next(row for row in raw_config["experiments"]["main"]["rows"] if row["name"] == "lvvit_m_384")
    row["set"] |= {
        "train.mix": "cutmix_mixup",
        "train.supervision": "hard",
        "train.epochs": 7,
        "train.randaugment_count": 0,
    }
    lines, _, _ = compared(raw_config, tmp_path, top1=85.44)
    expected = {
        "depth": "3", "width": "64", "heads": "4", "mlp_ratio": "2", "stochastic_depth": "0.05", "stochastic_depth_fixed": "yes",
        "enhanced_residuals": "no", "cutmix": "yes", "mixup": "yes", "mixtoken": "no", "token_labels": "no", "epochs": "7",
        "randaugment": "no", "top1": "85.44",
    }  # fmt: skip
    assert {name: lines[name]["ours"] for name in expected} == expected
    assert {lines[name]["agrees"] for name in expected if name != "top1"} == {"no"}
    assert lines["top1"]["agrees"] == "yes"  # 85.4 to the paper's digits
    assert float(lines["params_m"]["ours"]) < 2
