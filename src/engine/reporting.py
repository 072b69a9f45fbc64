"""What a training says while it runs, and what it leaves for afterwards; the loop calls it from its main process only.

    metrics.jsonl         a line per epoch, and one every `log_every_steps` steps (those have the key "step")
    events.out.tfevents*  the same for TensorBoard; wandb/ the same for Weights & Biases
    resumes.jsonl         a line for each time that the training was continued
    summary.json          the finished run in one document (docs/run-folder.md lists its keys)

Epochs and steps count from 0 everywhere. What depends on the clock or the machine stands in the keys TIMES only, so that
everything else of a resumed run equals an unbroken one's.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..core.errors import ConfigError, OutputError
from ..core.files import read_json, write_json, write_text
from ..core.log import git_commit, in_time, library_versions, logger
from ..core.metrics_lines import parse_metrics_line
from ..core.seeds import derived_seed

TIMES = ("seconds", "images_per_s", "memory_mb")
_COUNTS = ("images", "skipped", "unlabeled")
_ACCURACIES = {"top1": "top-1", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
_VALIDATIONS = (
    ("top1", "top5"),
    ("miou", "pixel_accuracy"),
)  # of a stage; the first one says which validation was best
_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class MetricsFile:
    """JSON lines, each written whole or not at all; not-a-number and infinity are null there and nan here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, float]]:
        """The epochs' lines."""
        return [line for line in self.all_lines() if "step" not in line]

    def steps(self) -> list[dict[str, float]]:
        """The lines between them."""
        return [line for line in self.all_lines() if "step" in line]

    def all_lines(self) -> list[dict[str, float]]:
        """All whole lines; one cut off by a kill is ignored.

        Raises:
            DataError: a line is JSON, but nothing that a training writes.
        """
        found = []
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    found.append(parse_metrics_line(text, self.path))
        return found

    def keep_before(self, epoch: int, step: int = 0) -> None:
        """Drops what will be run again: epochs from `epoch` on, steps from (`epoch`, `step`) on, and a torn last line."""
        kept = [line for line in self.all_lines() if (line["epoch"], line.get("step", math.inf)) < (epoch, step)]
        write_text(self.path, "".join(_as_json(line) for line in kept))

    def append(self, line: Mapping[str, float]) -> None:
        """Adds a line and waits until it is on the disk.

        Raises:
            OutputError: it cannot be written; the file is as before.
        """
        rest = _as_json(line).encode()
        try:
            with open(self.path, "ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise _unwritable(self.path, error) from error


class Reporter:
    """Progress, metrics and summary of one training.

    On a terminal a bar with a line per epoch above it; in a log a line at each `step` and `epoch` call.

    Args:
        folder: of the run.
        epochs: of the whole training, cool-down included.
        steps_per_epoch: optimiser steps.
        machine: says whether TensorBoard and Weights & Biases get the metrics.
        title: name of the run.
        main: False in the other processes of a training, where nothing happens.
    """

    def __init__(
        self, folder: Path, *, epochs: int, steps_per_epoch: int, machine: Mapping[str, Any], title: str, main: bool = True
    ) -> None:  # fmt: skip
        self._folder, self._machine, self._title, self._main = folder, machine, title, main
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._metrics = MetricsFile(folder / "metrics.jsonl")
        self._resumes = MetricsFile(folder / "resumes.jsonl")
        self._started = False
        self._closing = ExitStack()
        self._bar: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None

    def resume(self, epoch: int, step: int) -> None:
        """Starts at a step of an epoch; what was reported of it and later is dropped, for it is run again.

        Called once, before anything else, also with (0, 0).

        Raises:
            ConfigError: Weights & Biases is wanted and not installed or not reachable.
            OutputError: the run's folder cannot be written.
        """
        if not self._main:
            return
        self._started = True
        finished = self._folder / "summary.json"
        if finished.exists():  # a finished run that is run again
            for path in (finished, self._resumes.path):
                path.unlink(missing_ok=True)
        elif (epoch, step) > (0, 0) or self._metrics.path.exists():
            self._resumes.append({"epoch": epoch, "step": step})
        self._metrics.keep_before(epoch, step)
        self._first = self._done = epoch * self._steps_per_epoch + step
        self._since = self._said = time.monotonic()
        to_a_file = any(isinstance(handler, logging.FileHandler) for handler in logger.handlers)
        if sys.stderr.isatty() and not to_a_file:
            self._closing.enter_context(logging_redirect_tqdm([logger]))
            self._bar = self._closing.enter_context(
                tqdm(
                    total=self._total, initial=self._first, desc=f"epoch {epoch} of {self._epochs}", bar_format=_BAR,
                    smoothing=0, dynamic_ncols=True, leave=False,
                )
            )  # fmt: skip
        if self._machine["tensorboard"]:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._tensorboard = SummaryWriter(self._folder, purge_step=self._first)
            except OSError as error:
                raise _unwritable(self._folder, error) from error
        if self._machine["wandb_project"] is not None:
            self._wandb = _start_wandb(self._machine["wandb_project"], self._folder, self._title)
            self._closing.callback(self._wandb.finish)

    def step(self, epoch: int, step: int, values: Mapping[str, float], images: int) -> None:
        """Reports the steps since the last call.

        Args:
            epoch: number, from 0.
            step: number of the last of these steps within the epoch, from 0.
            values: their means: loss and its parts, learning_rate, grad_norm.
            images: photographs in them, of all processes.
        """
        if not self._main:
            return
        self._ensure_started()
        now = time.monotonic()
        rate = images / max(now - self._said, 1e-9)
        self._said = now
        line = {"epoch": epoch, "step": step, **values, "images_per_s": rate, "memory_mb": peak_memory_mb()}
        self._metrics.append(line)
        self._write_scalars("train", epoch * self._steps_per_epoch + step, line)
        self._advance(epoch, step + 1, line)
        if self._bar is None:
            logger.info("epoch %d, step %d: %s, %s left", epoch, step, _in_words(line), self._time_left())

    def epoch(self, line: Mapping[str, float]) -> None:
        """Reports a finished epoch: its number, means over it, counts, and the validation where there was one."""
        if not self._main:
            return
        self._ensure_started()
        rate = line.get("images", 0.0) / max(line.get("seconds", 0.0), 1e-9)
        line = {**line, "images_per_s": rate, "memory_mb": peak_memory_mb()}
        number = int(line["epoch"])
        self._metrics.append(line)
        # the number of its last step, so that a resume at the next epoch's first step does not purge it
        self._write_scalars("epoch", (number + 1) * self._steps_per_epoch - 1, line)
        self._advance(number + 1, 0, line)
        self._said = time.monotonic()  # a validation is no training step
        left = f", {self._time_left()} left" if number + 1 < self._epochs else ""
        logger.info("epoch %d of %d: %s%s", number, self._epochs, _in_words(line), left)

    def lines(self) -> list[dict[str, float]]:
        """The epochs' lines so far."""
        return self._metrics.lines() if self._main else []

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Ends bar, TensorBoard and Weights & Biases; at the end of the training writes summary.json.

        Args:
            summary: what the job knows (device, precision, ...); None: the training was interrupted.
        """
        if not self._main:
            return
        try:
            if summary is not None:
                measured = summarise(self._metrics.lines()) | {"resumed": len(self._resumes.steps())}
                measured |= {"commit": git_commit(), "versions": library_versions()}
                document = measured | {name: value for name, value in summary.items() if name not in measured}
                write_json(self._folder / "summary.json", document)
                if self._wandb is not None:
                    self._wandb.summary.update(document)
        finally:
            if self._tensorboard is not None:
                self._tensorboard.close()
            self._closing.close()

    @property
    def _total(self) -> int:
        return self._epochs * self._steps_per_epoch

    def _ensure_started(self) -> None:
        if not self._started:
            self.resume(0, 0)

    def _advance(self, epoch: int, step: int, line: Mapping[str, float]) -> None:
        done = epoch * self._steps_per_epoch + step
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {min(epoch, self._epochs - 1)} of {self._epochs}", refresh=False)
            # accuracies stand in the line above; here they would leave no room for the bar
            self._bar.set_postfix_str(_in_words({k: v for k, v in line.items() if k not in _ACCURACIES}), refresh=False)
            self._bar.n = done
            self._bar.refresh()
        self._done = done

    def _time_left(self) -> str:
        done = max(self._done - self._first, 1)
        return in_time((self._total - self._done) * (time.monotonic() - self._since) / done)

    def _write_scalars(self, group: str, number: int, line: Mapping[str, float]) -> None:
        scalars = {f"{group}/{name}": value for name, value in line.items() if name not in ("epoch", "step", "steps")}
        if self._tensorboard is not None:
            try:
                for name, value in scalars.items():
                    self._tensorboard.add_scalar(name, value, number)
                self._tensorboard.flush()  # a kill must not take what a checkpoint counts as done
            except OSError as error:
                raise _unwritable(self._folder, error) from error
        if self._wandb is not None:
            self._wandb.log({**scalars, "global_step": number, "epoch": line["epoch"]})


def summarise(lines: list[dict[str, float]]) -> dict[str, Any]:
    """What summary.json says of the epochs' lines.

    Returns:
        epochs, steps, the sums of the counts and seconds, images_per_s, the largest memory_mb, the last learning rate and losses,
        and final and best: {epoch, top1, top5} or {epoch, miou, pixel_accuracy} of the last validation and of the best (the first
        of equals), None without one.
    """
    names = next((names for names in _VALIDATIONS if any(names[0] in line for line in lines)), _VALIDATIONS[0])
    measured = [{name: line[name] for name in ("epoch", *names) if name in line} for line in lines if names[0] in line]
    counts = {name: int(sum(line.get(name, 0) for line in lines)) for name in _COUNTS}
    seconds = sum(line.get("seconds", 0.0) for line in lines)
    last = lines[-1] if lines else {}
    return {
        "final": measured[-1] if measured else None,
        "best": max(measured, key=lambda found: found[names[0]]) if measured else None,
        "epochs": len(lines),
        "steps": int(sum(line.get("steps", 0) for line in lines)),
        **counts,
        "losses": _finite({name: value for name, value in last.items() if name == "loss" or name.endswith("_loss")}),
        "seconds": round(seconds, 3),
        "images_per_s": round(counts["images"] / max(seconds, 1e-9), 3),
        "memory_mb": max((line.get("memory_mb", 0.0) for line in lines), default=0.0),
    }


def peak_memory_mb() -> float:
    """The most memory that this process has had: on its GPU where it uses one, else its resident set; in MB of 2**20 bytes."""
    if torch.cuda.is_available() and (allocated := torch.cuda.max_memory_allocated()):
        return round(allocated / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _in_words(line: Mapping[str, float]) -> str:
    """Loss and its parts, accuracies, learning rate, what went wrong, speed and memory."""
    parts = ", ".join(
        f"{name.removesuffix('_loss')} {value:.3f}" for name, value in line.items() if name.endswith("_loss")
    )
    words = [f"loss {line['loss']:.3f}{f' ({parts})' if parts else ''}"] if "loss" in line else []
    words += [f"{said} {line[name]:.2f} %" for name, said in _ACCURACIES.items() if name in line]
    if "grad_norm" in line:
        words.append(f"gradient {line['grad_norm']:.2f}")
    if "learning_rate" in line:
        words.append(f"lr {line['learning_rate']:.3g}")
    words += [f"{line[name]:.0f} {name}" for name in ("skipped", "unlabeled") if line.get(name)]
    words += [f"{line['images_per_s']:.1f} images/s", f"{line['memory_mb'] / 1024:.1f} GB"]
    return ", ".join(words)


def _finite(line: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in line.items()}


def _as_json(line: Mapping[str, float]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({os.strerror(error.errno) if error.errno else error}); what was there is whole. "
        "Free space or permission is needed there; the same command then continues from the last checkpoint."
    )


def _start_wandb(project: str, folder: Path, title: str) -> Any:
    """A run of Weights & Biases whose id comes from the folder, so that a resumed training continues it."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"machine.wandb_project {project}: the package wandb is not installed. Run pip install 'tokenlabel[wandb]', or "
            "set wandb_project to null."
        ) from None
    spec = folder.parent / "spec.json"
    try:
        run = wandb.init(
            project=project, name=title, dir=folder, id=f"{derived_seed('wandb', str(folder.resolve())):016x}", resume="allow",
            config=read_json(spec) if spec.exists() else None, settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
    except wandb.Error as error:
        raise ConfigError(
            f"machine.wandb_project {project}: {' '.join(str(error).split())} Run wandb login, set WANDB_MODE=offline, or set "
            "wandb_project to null."
        ) from None
    run.define_metric("*", step_metric="global_step")  # steps that are run again after a resume are logged again
    logger.info("Weights & Biases: %s", run.dir if run.offline else run.url)
    return run
