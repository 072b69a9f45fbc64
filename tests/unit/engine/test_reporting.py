"""What a training says: real files, a real pseudo-terminal, TensorBoard's own reader, Weights & Biases offline."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.errors import DataError, OutputError
from tokenlabel.core.files import read_json
from tokenlabel.core.log import logger
from tokenlabel.engine.reporting import TIMES, MetricsFile, Reporter, summarise

REPOSITORY = Path(__file__).resolve().parents[3]
MACHINE: dict[str, Any] = {"tensorboard": False, "wandb_project": None}
EPOCHS, STEPS = 3, 4


def reporter(folder: Path, **machine: Any) -> Reporter:
    return Reporter(folder, epochs=EPOCHS, steps_per_epoch=STEPS, machine=MACHINE | machine, title="run seed 0")


def train(reports: Reporter, start: tuple[int, int] = (0, 0), stop: tuple[int, int] = (EPOCHS, 0)) -> None:
    """Reports as the loop does, every second step, from a step up to another one."""
    reports.resume(*start)
    for epoch in range(start[0], EPOCHS):
        for step in range(start[1] if epoch == start[0] else 0, STEPS):
            if (epoch, step) == stop:
                return
            if step % 2:
                loss = 7.0 - epoch - step / 10
                values = {"learning_rate": 1e-3, "loss": loss, "class_loss": loss / 2, "token_loss": loss / 2}
                reports.step(epoch, step, values, images=24)
        line = {"epoch": epoch, "steps": STEPS, "learning_rate": 1e-3, "loss": 6.5 - epoch, "seconds": 2.0}
        accuracies = {"top1": [10.0, 30.0, 20.0][epoch], "top5": 50.0} if epoch else {}
        reports.epoch(line | {"images": 48, "skipped": 1, "unlabeled": 2} | accuracies)


def without_times(folder: Path) -> list[dict[str, float]]:
    text = (folder / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]


@pytest.mark.parametrize(
    ("killed", "resumed"), [((1, 3), (1, 2)), ((1, 3), (1, 0)), ((2, 0), (1, 3)), ((0, 2), (0, 0))]
)
def test_a_resumed_runs_lines_equal_an_unbroken_ones(
    tmp_path: Path, killed: tuple[int, int], resumed: tuple[int, int]
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    train(reporter(tmp_path / "whole"))
    train(reporter(tmp_path / "run"), stop=killed)  # never closed, as by SIGKILL
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "st')  # and in the middle of a line
    again = reporter(tmp_path / "run")
    train(again, start=resumed)
    again.close({})
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    assert len(without_times(tmp_path / "run")) == EPOCHS * (STEPS // 2 + 1)
    assert read_json(tmp_path / "run" / "summary.json")["resumed"] == 1


def test_lines_and_steps_are_told_apart_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    reports = reporter(tmp_path)
    reports.resume(0, 0)
    reports.step(0, 1, {"loss": math.inf, "grad_norm": math.nan, "learning_rate": 0.1}, images=2)
    reports.epoch({"epoch": 0, "loss": 1.0, "images": 2, "seconds": 4.0})
    raw = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert (raw[0]["loss"], raw[0]["grad_norm"]) == (None, None)
    (line,), (step,) = reports.lines(), MetricsFile(tmp_path / "metrics.jsonl").steps()
    assert line["images_per_s"] == 0.5
    assert line["memory_mb"] > 50  # torch is loaded in this process
    assert math.isnan(step["loss"])


@pytest.mark.parametrize(
    "line", ['{"epoch": "1"}', '{"loss": 1.0}', '{"epoch": 1, "loss": "high"}', "[1]", '{"epoch": true}']
)
def test_a_line_that_no_training_writes_is_named(tmp_path: Path, line: str) -> None:
    train(reporter(tmp_path), stop=(1, 3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: .* is no line of a training.*Remove that line") as caught:
        reporter(tmp_path).resume(1, 2)
    assert repr(line) in str(caught.value)


def test_the_summary_says_exactly_what_the_lines_add_up_to(tmp_path: Path) -> None:
    reports = reporter(tmp_path)
    train(reports)
    reports.close({"device": "cpu", "precision": "float32"})
    found = read_json(tmp_path / "summary.json")
    assert found["final"] == {"epoch": 2, "top1": 20.0, "top5": 50.0}
    assert found["best"] == {"epoch": 1, "top1": 30.0, "top5": 50.0}
    sums = ("epochs", "steps", "images", "skipped", "unlabeled", "seconds", "images_per_s", "resumed", "device")
    assert [found[name] for name in sums] == [3, 12, 144, 3, 6, 6.0, 24.0, 0, "cpu"]
    assert found["losses"] == {"loss": 4.5}
    assert found["memory_mb"] == max(line["memory_mb"] for line in reports.lines())
    assert found["versions"]["torch"]
    train(reporter(tmp_path))  # the finished run is run again: nothing of it was a resumption
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "resumes.jsonl").exists()


def test_a_segmentations_best_interval_is_that_of_the_highest_miou() -> None:
    measured = [(10.0, 70.0), (12.0, 60.0), (12.0, 65.0), (11.0, 80.0)]
    lines = [{"epoch": n, "miou": miou, "pixel_accuracy": pixels} for n, (miou, pixels) in enumerate(measured)]
    found = summarise([*lines, {"epoch": 4, "loss": 1.0}])
    assert found["best"] == {"epoch": 1, "miou": 12.0, "pixel_accuracy": 60.0}
    assert found["final"] == {"epoch": 3, "miou": 11.0, "pixel_accuracy": 80.0}


def test_a_run_without_validation_has_no_best_epoch() -> None:
    found = summarise([{"epoch": 0, "steps": 2, "images": 4, "seconds": 1.0, "loss": 1.0}])
    assert (found["final"], found["best"], found["images"], found["skipped"]) == (None, None, 4, 0)


def test_the_other_processes_write_nothing(tmp_path: Path) -> None:
    other = Reporter(tmp_path, epochs=EPOCHS, steps_per_epoch=STEPS, machine=MACHINE, title="", main=False)
    train(other)
    other.close({})
    assert list(tmp_path.iterdir()) == []
    assert other.lines() == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from tokenlabel.core.errors import OutputError
from tests.unit.engine.test_reporting import reporter
folder = Path(sys.argv[1])
reports = reporter(folder)
reports.resume(0, 0)
line = {"epoch": 0, "step": 1, "loss": 1.0}
reports.step(0, 1, {"loss": 1.0}, images=2)
size = (folder / "metrics.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))  # the next line fits in part
try:
    reports.step(0, 3, {"loss": 1.0}, images=2)
except OutputError as error:
    print(error)
"""


def test_a_disk_that_fills_in_the_middle_of_a_line_leaves_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert re.search(r"metrics\.jsonl: cannot be written \(File too large\); what was there is whole", done.stdout)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.endswith("}\n")
    assert [line["step"] for line in MetricsFile(tmp_path / "metrics.jsonl").steps()] == [1]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        MetricsFile(tmp_path / "no" / "metrics.jsonl").append({"epoch": 0})


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(reporter(tmp_path, tensorboard=True), stop=(2, 2))
    again = reporter(tmp_path, tensorboard=True)
    train(again, start=(1, 2))
    again.close({})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "train/token_loss" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3, 5, 7, 9, 11]
    assert [(event.step, event.value) for event in events.Scalars("epoch/top1")] == [(7, 30.0), (11, 20.0)]
    assert [event.value for event in events.Scalars("epoch/loss")] == [6.5, 5.5, 4.5]


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    from tokenlabel.core.log import set_up_logging

    set_up_logging(tmp_path / "train.log")
    yield tmp_path / "train.log"
    set_up_logging(None)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def test_a_log_has_a_short_line_for_each_report(tmp_path: Path, log_file: Path) -> None:
    train(reporter(tmp_path))
    lines = [line.split(" INFO ", 1)[1] for line in log_file.read_text().splitlines()]
    assert len(lines) == 9
    assert re.fullmatch(
        r"epoch 0, step 1: loss 6\.900 \(class 3\.450, token 3\.450\), lr 0\.001, [\d.]+ images/s, [\d.]+ GB, \d+ s left",
        lines[0],
    )
    assert re.fullmatch(
        r"epoch 2 of 3: loss 4\.500, top-1 20\.00 %, top-5 50\.00 %, lr 0\.001, 1 skipped, 2 unlabeled, 24\.0 images/s, [\d.]+ GB",
        lines[-1],
    )


TERMINAL = """
import sys
from pathlib import Path
from tokenlabel.core.log import set_up_logging, logger
from tests.unit.engine.test_reporting import reporter, train
set_up_logging(None)
reports = reporter(Path(sys.argv[1]))
train(reports)
reports.close({})
logger.info("after")
"""


def test_a_terminal_has_a_bar_and_a_line_per_epoch(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, str(tmp_path)], stdin=terminal, stdout=terminal, stderr=terminal,
        cwd=REPOSITORY,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # how a pseudo-terminal says that its other side is closed
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    frames = re.split(r"[\r\n]+", shown.decode().replace("\x1b[A", ""))
    bars = [frame for frame in frames if re.match(r"epoch \d of 3 +\d+%\|", frame)]
    assert any(re.search(r"epoch 1 of 3 +50%\|.*loss 5\.900 \(class 2\.950, token 2\.950\), lr 0\.001, .* images/s, .* GB", bar)
               for bar in bars)  # fmt: skip
    assert all(re.search(r"\d\d:\d\d<[\d:?]+", bar) for bar in bars)
    plain = [frame.strip() for frame in frames if re.match(r"epoch \d of 3: |epoch \d, step|after", frame)]
    assert [line.split(":")[0] for line in plain] == ["epoch 0 of 3", "epoch 1 of 3", "epoch 2 of 3", "after"]


WANDB = """
import sys
from pathlib import Path
from tests.unit.engine.test_reporting import reporter, train
if "killed" in sys.argv:
    train(reporter(Path(sys.argv[1]), wandb_project="tokenlabel-test"), stop=(1, 3))
else:
    reports = reporter(Path(sys.argv[1]), wandb_project="tokenlabel-test")
    train(reports, start=(1, 2))
    reports.close({"device": "cpu"})
"""


def run_wandb(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", WANDB, str(folder), *words], capture_output=True, text=True,
        cwd=REPOSITORY, check=False, timeout=120, env=os.environ | {"WANDB_MODE": "offline"} | environment,
    )  # fmt: skip


@pytest.mark.campaign
def test_weights_and_biases_continues_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "run" / "seed0"
    folder.mkdir(parents=True)
    (folder.parent / "spec.json").write_text('{"stage": "train"}')
    for words in (["killed"], []):
        done = run_wandb(folder, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout + done.stderr == ""  # its own lines would drown ours
    offline = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    assert len({path.name.rsplit("-", 1)[1] for path in offline}) == 1  # one id: one run in the project
    assert all(list(path.glob("run-*.wandb")) for path in offline)
    assert read_json(folder / "summary.json")["resumed"] == 1


def test_weights_and_biases_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenlabel.core.errors import ConfigError

    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python itself does where a package is missing
    with pytest.raises(ConfigError, match=r"wandb_project study: .*pip install 'tokenlabel\[wandb\]'"):
        reporter(tmp_path, wandb_project="study").resume(0, 0)


def test_the_page_on_the_run_folder_lists_every_key(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "run-folder.md").read_text(encoding="utf-8")
    lines, summary = page.split("## metrics.jsonl")[1].split("## summary.json")
    reports = reporter(tmp_path)
    train(reports)
    reports.close({})
    written = {name for line in without_times(tmp_path) for name in line} | set(TIMES)
    assert written <= set(re.findall(r"`(\w+)`", lines))
    assert set(read_json(tmp_path / "summary.json")) <= set(re.findall(r"`(\w+)`", summary))
