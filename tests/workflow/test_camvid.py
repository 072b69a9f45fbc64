"""The study in examples/camvid as it is planned: arms that differ in the backbone's weights alone. Nothing is trained."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from snakemake.utils import update_config

from tokenlabel.core.study import Study

from .conftest import REPOSITORY, planned_jobs, run_snakemake

FILES = [REPOSITORY / "examples" / "tinyimagenet20" / "study.yaml", REPOSITORY / "examples" / "camvid" / "study.yaml"]
PREPARE = REPOSITORY / "examples" / "camvid" / "prepare.py"
CLASSES = [f"class{index}" for index in range(11)]


def configuration(*files: Path) -> dict[str, Any]:
    """The merged configuration, as Snakemake merges it."""
    merged: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    for file in files:
        update_config(merged, yaml.safe_load(file.read_text(encoding="utf-8")))
    return merged


def test_arms_differ_in_the_backbones_weights_alone() -> None:
    table = Study.plan(configuration(*FILES)).segmentation_tables["camvid"]
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["random", "hard", "token"]
    assert table.seeds == (0, 1, 2)
    assert [rows[name].against for name in rows] == [None, "random", "hard"]
    specs = [{**row.run.spec, "start": None} for row in table.rows]
    assert specs[0] == specs[1] == specs[2]
    starts = [row.run.start.spec["recipe"]["supervision"] if row.run.start else None for row in table.rows]
    assert starts == [None, "hard", "token"]


def test_its_backbones_are_those_of_the_study_of_token_labels() -> None:
    before = Study.plan(configuration(FILES[0])).tables["token_labels"]
    known = {row.name: row.run.name for row in before.rows if row.run}
    rows = Study.plan(configuration(*FILES)).segmentation_tables["camvid"].rows
    assert {row.name: row.run.start.name for row in rows if row.run.start} == {
        name: known[name] for name in ("hard", "token")
    }


def test_the_same_dag_runs_it(tmp_path: Path) -> None:
    jobs = planned_jobs(run_snakemake(tmp_path, "-n", "results/camvid.csv", "--configfile", *map(str, FILES)))
    assert jobs == {
        "make_manifest": 1, "adapt_annotator": 1, "annotate_shard": 2, "train_run": 6, "make_scene_manifest": 1,
        "train_segmentation": 9, "evaluate_segmentation": 9, "make_segmentation_table": 1,
    }  # fmt: skip


# --- prepare.py ---


def archive(path: Path, counts: dict[str, int], *, top: int = 11) -> Path:
    """An archive of so many photographs, all of one mask, whose largest id is given."""
    photograph, mask, encoded = io.BytesIO(), io.BytesIO(), {}
    Image.new("RGB", (480, 360)).save(photograph, "JPEG")
    Image.fromarray(np.full((360, 480), top, dtype=np.uint8)).save(mask, "PNG")
    encoded["classes.txt"] = "\n".join([*CLASSES, "unlabelled"]).encode()
    for split, count in counts.items():
        for number in range(count):
            encoded[f"images/{split}/{number:04}.jpg"] = photograph.getvalue()
            encoded[f"annotations/{split}/{number:04}.png"] = mask.getvalue()
    with tarfile.open(path, "w") as tar:
        for name, content in encoded.items():
            member = tarfile.TarInfo(f"camvid/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def prepare(place: Path, **content: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(PREPARE), str(archive(place / "camvid.tar", **content)), str(place / "camvid")]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_prepare_lays_out_what_the_study_file_names(tmp_path: Path) -> None:
    done = prepare(tmp_path, counts={"training": 367, "validation": 101})
    assert done.returncode == 0, done.stderr
    dataset = configuration(*FILES)["segmentation"]["dataset"]
    root = tmp_path / "camvid"
    assert (root / dataset["classes"]).read_text().splitlines() == CLASSES
    for split in ("train", "val"):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            assert len(list((root / dataset[split][kind]).glob(f"*.{suffix}"))) == dataset[f"{split}_images"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"counts": {"training": 3, "validation": 101}}, "training: 3 photographs, expected 367"),
        ({"counts": {"training": 367, "validation": 101}, "top": 12}, "class id 12, expected at most 11"),
    ],
    ids=["count", "id"],
)
def test_another_archive_is_one_line(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    done = prepare(tmp_path, **content)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not (tmp_path / "camvid").exists()
