"""What a training says of itself: metrics.jsonl, one line a finished epoch and one every few steps; summary.json at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.files import write_json, write_text
from ..core.log import logger


class MetricsFile:
    """metrics.jsonl: one JSON line per finished epoch, and one per logged step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all_lines(self) -> list[dict[str, float]]:
        """All whole lines; one cut off by a kill is ignored."""
        found = []
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    found.append(json.loads(text))
                except ValueError:
                    continue
        return found

    def lines(self) -> list[dict[str, float]]:
        """The epochs' lines."""
        return [line for line in self.all_lines() if "step" not in line]

    def keep_before(self, epoch: int, step: int) -> None:
        """Drops lines of what will be run again."""
        kept = [
            line
            for line in self.all_lines()
            if line["epoch"] < epoch or ("step" in line and (line["epoch"], line["step"]) < (epoch, step))
        ]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: dict[str, float]) -> None:
        """Adds a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Reporter:
    """Writes the metrics of one training; only the main process's writes anything."""

    def __init__(
        self, folder: Path, *, epochs: int, steps_per_epoch: int, machine: dict[str, Any], title: str, main: bool = True
    ) -> None:
        self._folder, self._main = folder, main
        self._metrics = MetricsFile(folder / "metrics.jsonl")

    def resume(self, epoch: int, step: int) -> None:
        """Drops lines of what will be run again."""
        if self._main:
            self._metrics.keep_before(epoch, step)

    def step(self, epoch: int, step: int, values: dict[str, float], images: int) -> None:
        """A step's line: means since the last one."""
        if self._main:
            self._metrics.append({"epoch": epoch, "step": step, **values, "images": images})

    def epoch(self, line: dict[str, float]) -> None:
        """An epoch's line."""
        if self._main:
            self._metrics.append(line)
            logger.info("epoch %s", " ".join(f"{k} {v:.4g}" for k, v in line.items()))

    def lines(self) -> list[dict[str, float]]:
        """The epochs' lines so far."""
        return self._metrics.lines()

    def close(self, summary: dict[str, Any] | None) -> None:
        """Writes summary.json when given one."""
        if self._main and summary is not None:
            write_json(self._folder / "summary.json", summary)
