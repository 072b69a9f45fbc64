"""A real study whose folders, classes and files have names that a shell, a template, a page or a spreadsheet would act on."""

from __future__ import annotations

import copy
import csv
import html
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.warm import warm_python
from tokenlabel.core.files import read_json
from tokenlabel.data.manifest import load_manifest

from .browser import CHROMIUM, open_browser
from .conftest import REPOSITORY, run_snakemake

FOLDER = "$(touch pwned) it's"
CLASSES = [
    "$(touch pwned)",
    "-rf",
    '`touch pwned`; touch pwned & it\'s "quoted" > pwned',
    "two\nlines\tand a tab",
    "{wildcards.seed} {input} %s $HOME ${IFS} \\ $\\frac{1$",
    "<img src=x onerror=alert(1)>",
    "=1+1|*?[a-z] ~",
    "  spaces around  ",
]
FILES = ["$(touch pwned).jpg", "-n.jpg", "a\nb 'c' \"d\".jpg", "{wildcards.run}.jpg", "<b>&.jpg"]
PHOTOS, CHECKOUT, STUDY = f"photos {FOLDER}", f"checkout {FOLDER}", f"study {FOLDER}"
FROM_THE_REPOSITORY = ("Snakefile", "rules", "config.yaml", "profiles", "envs")


def command(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [warm_python(), "-m", "tokenlabel", *words], cwd=place, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


@pytest.fixture(scope="module")
def place(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a copy of the workflow and a folder for results."""
    place = tmp_path_factory.mktemp("hostile") / FOLDER
    place.mkdir()
    for split in ("train", "val"):
        for name, source in zip(CLASSES, sorted((photographs / split).iterdir()), strict=False):
            folder = place / PHOTOS / split / name
            folder.mkdir(parents=True)
            for file, photograph in zip(FILES, sorted(source.iterdir()), strict=False):
                shutil.copy(photograph, folder / file)
    (place / CHECKOUT).mkdir()
    for name in FROM_THE_REPOSITORY:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place / CHECKOUT / name)
    (place / STUDY).mkdir()
    return place


@pytest.fixture(scope="module")
def study(place: Path, small_study: dict[str, Any]) -> Path:
    """The directory of a finished study: a probe's labels, hard and token labels, a further test set, the report."""
    overlay = copy.deepcopy(small_study)
    overlay["data_root"] = str(place / PHOTOS)
    overlay["dataset"] = {
        **overlay["dataset"], "class_map": None, "num_classes": len(CLASSES), "train_images": 40, "val_images": 16,
    }  # fmt: skip
    overlay["annotators"]["probe"] = {"base": "lite0", "adapt": "probe"}
    overlay["select"] = {"annotators": ["probe"], "experiments": ["ablation_annotators"]}
    overlay["defaults"]["annotator"] = "probe"
    overlay["test_sets"] = {"again": {"path": str(place / PHOTOS / "val"), "classes": "names", "images": None}}
    overlay["evaluation"] = {"test_sets": ["again"]}
    overlay["experiments"]["ablation_annotators"]["question"] = f"Do names run? {' '.join(CLASSES)}"
    overlay["caps"]["epochs"] = 1
    finished = run_snakemake(
        place / STUDY, "all", "--cores", "2", overlay=overlay, snakefile=place / CHECKOUT / "Snakefile", timeout_s=600
    )
    assert finished.returncode == 0, finished.stderr[-5000:]
    return place / STUDY


@pytest.fixture(autouse=True)
def _nothing_ran(place: Path) -> Iterator[None]:
    yield
    for top in (place.parent, REPOSITORY):
        assert not [path for path in top.rglob("pwned") if ".git" not in path.parts], top


def seed_folder(study: Path) -> Path:
    """Of the run with token labels."""
    (row,) = (
        row
        for row in csv.DictReader((study / "results" / "ablation_annotators.csv").read_text().splitlines())
        if row["name"] == "probe"
    )
    return study / "results" / "runs" / row["run"] / "seed0"


def test_the_study_finishes_and_every_class_and_file_keeps_its_name(study: Path) -> None:
    (marker,) = (study / "results").rglob("manifest.done")
    assert read_json(marker)["classes"] == sorted(CLASSES)
    manifest = load_manifest(marker.parent, "train")
    assert {manifest.path(row) for row in range(len(manifest))} <= {f"{c}/{f}" for c in CLASSES for f in FILES}
    (classes,) = seed_folder(study).glob("evaluation-*.classes.csv")
    with classes.open(encoding="utf-8", newline="") as file:
        assert [row["folder"] for row in csv.DictReader(file)] == sorted(CLASSES)
    for figure in (study / "results" / "figures").glob("*.png"):
        Image.open(figure).load()
    assert (study / "results" / "figures" / "label_maps.png").exists()


def test_predictions_and_pictures_keep_the_names(study: Path, place: Path) -> None:
    seed = os.path.relpath(seed_folder(study), study)
    photographs = str(place / PHOTOS / "val")
    command(study, "predict", seed, photographs, "--top", "1", "--out=-seen.csv", "--maps", "maps $(touch pwned)")
    with (study / "-seen.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(f"{c}/{f}" for c in CLASSES for f in FILES[:2])
    assert {row["class_1"] for row in rows} <= set(CLASSES)
    assert len(list((study / "maps $(touch pwned)").rglob("*.png"))) == len(rows)
    printed = command(study, "predict", seed, photographs, "--top", "1").stdout
    assert sorted(row["path"] for row in csv.DictReader(io.StringIO(printed, newline=""))) == sorted(
        row["path"] for row in rows
    )
    command(study, "visualise", seed, photographs, "--out", "$(touch pwned).png", "--count", "2")
    Image.open(study / "$(touch pwned).png").load()
    command(study, "export", seed, "exported $(touch pwned)")
    assert read_json(study / "exported $(touch pwned)" / "config.json")["label_names"] == sorted(CLASSES)


def test_names_are_only_text_in_the_report(study: Path) -> None:
    report = (study / "results" / "report.html").read_text(encoding="utf-8")
    assert "<img src=x onerror" not in report
    page = (study / "results" / "pages" / "ablation_annotators.html").read_text(encoding="utf-8")
    assert "<img src=x onerror" not in page
    assert html.escape("<img src=x onerror=alert(1)>") in page
    assert not re.search(r"(?<!\\)<img", (study / "results" / "ablation_annotators.md").read_text(encoding="utf-8"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package chromium)")
def test_the_report_runs_no_name_in_a_browser(study: Path) -> None:
    with open_browser() as browser:
        browser.open(study / "results" / "report.html")
        assert not browser.problems
        browser.open(study / "results" / "pages" / "ablation_annotators.html")
        assert not browser.evaluate("document.querySelectorAll('img[src=x]').length")
        assert not browser.problems


def test_status_and_a_second_run_find_everything_done(study: Path, place: Path) -> None:
    assert "pwned" not in command(study, "status").stderr
    again = run_snakemake(
        study, "all", "--cores", "1", "-n", "--configfile", str(study / "study.yaml"),
        snakefile=place / CHECKOUT / "Snakefile",
    )  # fmt: skip
    assert "Nothing to be done" in again.stdout + again.stderr, again.stdout[-2000:]


def test_a_file_name_that_is_not_utf8_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "train" / "cat"
    folder.mkdir(parents=True)
    for source in (place / PHOTOS / "train" / "-rf").iterdir():
        shutil.copy(source, folder)
    os.rename(os.fsencode(folder / "-n.jpg"), os.fsencode(folder) + b"/\xff\xfe$(touch pwned).jpg")  # noqa: PTH104
    from tokenlabel.core.errors import DataError, one_line
    from tokenlabel.data.readers import list_entries

    with pytest.raises(DataError, match="is not UTF-8") as refused:
        list_entries(tmp_path / "photos", "train", "folder")
    one_line(refused.value).encode("utf-8")  # can be printed


@pytest.mark.campaign  # half a minute
def test_the_overlay_of_init_survives_the_names(place: Path) -> None:
    shutil.copytree(place / PHOTOS / "train", place / "own $(touch pwned) it's {x}")
    shown = command(place, "init", "own $(touch pwned) it's {x}", "--minutes", "1", "--name", "own").stdout
    study = yaml.safe_load((place / "own.yaml").read_text(encoding="utf-8"))
    assert Path(study["data_root"]).name == "own $(touch pwned) it's {x}"
    assert study["dataset"]["num_classes"] == len(CLASSES)
    assert "own" in shown
