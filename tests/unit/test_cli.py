"""The command line: every verb explains itself, a mistake is one line, importing labels or the plan loads no torch."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenlabel.cli import VERBS


def run(*arguments: str, timeout_s: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokenlabel", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    finished = run(verb, "--help")
    assert finished.returncode == 0
    assert f"usage: tokenlabel {verb}" in finished.stdout
    assert len(finished.stdout.splitlines()) > 4


@pytest.mark.parametrize("stage", ["annotate", "train", "eval", "labels", "data", "demo"])
def test_the_stages_are_modules_too(stage: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", f"tokenlabel.{stage}", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0
    assert f"usage: python -m tokenlabel.{stage}" in finished.stdout


def test_help_and_version_are_quick_and_an_unknown_verb_is_refused() -> None:
    assert "annotate" in run("--help").stdout
    assert run("--version").stdout.startswith("tokenlabel 0.")
    finished = run("anotate")
    assert finished.returncode == 2
    assert "invalid choice: 'anotate'" in finished.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import tokenlabel.core.study, tokenlabel.core.cost, tokenlabel.core.log",
        "from tokenlabel.labels import LabelStore",
        "import tokenlabel.cli",
    ],
)
def test_torch_is_not_loaded_where_it_is_not_needed(statement: str) -> None:
    code = f"{statement}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_spec_is_one_line(tmp_path: Path) -> None:
    finished = run(
        "train", "--spec", "no.json", "--machine", "m.json", "--manifest", "x", "--done", str(tmp_path / "d")
    )
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "error: no.json: the run's spec is missing. The workflow writes it when it starts; run snakemake."
    ]


def test_predict_writes_classes_and_maps_and_counts_what_it_cannot_read(tmp_path: Path, photographs: Path) -> None:
    import torch

    from tokenlabel.core.files import write_json
    from tokenlabel.engine.run_model import model_of_spec
    from tokenlabel.models import save_weights

    spec = {
        "model": {"architecture": "lvvit_t", "stochastic_depth": 0.0, "settings": {"depth": 1, "width": 32, "heads": 2}},
        "dataset": {"num_classes": 3}, "image_px": 64, "recipe": {"supervision": "token", "token_weight": 1.0},
    }  # fmt: skip
    torch.manual_seed(0)
    metadata = {"spec": __import__("json").dumps(spec), "classes": '["cat", "dog", "bird"]'}
    save_weights(model_of_spec(spec), tmp_path / "run" / "model.safetensors", metadata)
    write_json(tmp_path / "run" / "done.json", {})
    source = sorted((photographs / "val").rglob("*.jpg"))[:2]
    folder = tmp_path / "mine"
    (folder / "holiday").mkdir(parents=True)
    (folder / "holiday" / "one.jpg").write_bytes(source[0].read_bytes())
    (folder / "two.jpg").write_bytes(source[1].read_bytes())
    (folder / "broken.jpg").write_bytes(b"not a photograph")
    finished = run(
        "predict",
        str(tmp_path / "run"),
        str(folder),
        "--out",
        str(tmp_path / "p.csv"),
        "--maps",
        str(tmp_path / "maps"),
    )
    assert finished.returncode == 1  # one photograph could not be read
    assert "broken.jpg: cannot be decoded" in finished.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == ["holiday/one.jpg", "two.jpg"]
    for row in rows:
        assert {row["class_1"], row["class_2"], row["class_3"]} == {"cat", "dog", "bird"}
        assert sum(float(row[f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-3)
    with np.load(tmp_path / "maps" / "holiday" / "one.jpg.npz") as maps:
        assert maps["classes"].shape == (4, 4, 3)
    assert (tmp_path / "maps" / "two.jpg.png").exists()

    for arguments, message in [
        ((str(tmp_path / "run"), str(tmp_path / "nowhere")), "nowhere: no such folder"),
        ((str(tmp_path / "none.safetensors"), str(folder)), "none.safetensors"),
    ]:
        refused = run("predict", *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
