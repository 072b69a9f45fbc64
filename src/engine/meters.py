"""What the steps of a training measured: means for the log, sums for the epoch's line, and whether every loss was a number.

Values stay on the device, so that no step waits for them; they are read once every few steps. What is read is the same in
every process, and a resumed training reads what the unbroken one would have read, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

HOST_COUNTS = ("images", "skipped", "seconds")
NORMS = "norms"  # how many finite norms "grad_norm" sums; a scaled float16 loss may have an infinite one, which its scaler mends


class Meters:
    """Sums over the steps since the last reading, and over the epoch.

    Args:
        counters: names of values that are counts and add up; all others are means over photographs.
        state: of an earlier `state()`, in the same epoch.
    """

    def __init__(self, counters: Collection[str], state: dict[str, dict[str, float]] | None = None) -> None:
        self._counters = {*counters, *HOST_COUNTS, "grad_norm", NORMS}
        self._device: dict[str, torch.Tensor] = {}
        self._window: dict[str, float] = dict(state["window"]) if state else {}
        self._epoch: dict[str, float] = dict(state["epoch"]) if state else {}

    def add(self, values: dict[str, torch.Tensor], norm: torch.Tensor | None, counts: dict[str, float]) -> None:
        """Adds a step's means and counts.

        Args:
            values: by name, scalar tensors over the whole step.
            norm: of the gradients, or None.
            counts: HOST_COUNTS of the step: photographs, those that could not be decoded, seconds.
        """
        if norm is not None:
            finite = torch.isfinite(norm)
            values = {**values, "grad_norm": torch.where(finite, norm, 0.0), NORMS: finite}
        for name, value in values.items():
            exact = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            if name not in self._counters:
                exact = exact * counts["images"]
            if name in self._device:
                self._device[name] += exact
            else:
                self._device[name] = exact + self._window.get(name, 0.0)
        for name, count in counts.items():
            self._window[name] = self._window.get(name, 0.0) + count

    def read_window(self) -> tuple[dict[str, float], int]:
        """Means since the last reading, and how many photographs they are of; the next window begins."""
        self._fetch()
        window, self._window, self._device = self._window, {}, {}
        for name, value in window.items():
            self._epoch[name] = self._epoch.get(name, 0.0) + value
        means = self._means(window)
        return {k: v for k, v in means.items() if k not in HOST_COUNTS}, int(window.get("images", 0))

    def epoch_means(self) -> dict[str, float]:
        """Means and counts of the epoch so far."""
        self.read_window()
        return self._means(self._epoch)

    def state(self) -> dict[str, dict[str, float]]:
        """What a resumed training goes on with."""
        self._fetch()
        return {"window": dict(self._window), "epoch": dict(self._epoch)}

    def _fetch(self) -> None:
        """Reads the device's sums: the only wait."""
        if self._device:
            self._window |= dict(zip(self._device, torch.stack(list(self._device.values())).tolist(), strict=True))

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        images = max(sums.get("images", 0.0), 1.0)
        means = {}
        for name, value in sums.items():
            if name == "grad_norm":
                means[name] = value / max(sums[NORMS], 1.0)
            elif name != NORMS:
                means[name] = value if name in self._counters else value / images
        return means


@dataclass(frozen=True)
class StepLosses:
    """A step's losses on their way from the device.

    Attributes:
        epoch, step: which step.
        names: of the means over the whole step.
        sample_ids: uint64, the photographs of each of this process's micro-batches.
        values: the means, then the loss of each of these micro-batches.
    """

    epoch: int
    step: int
    names: tuple[str, ...]
    sample_ids: tuple[np.ndarray[Any, Any], ...]
    values: torch.Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def fetch(
        cls, epoch: int, step: int, means: dict[str, torch.Tensor], own: list[tuple[np.ndarray[Any, Any], torch.Tensor]]
    ) -> StepLosses:
        """Starts copying; nothing waits."""
        stacked = torch.stack([value.detach().float() for value in [*means.values(), *(loss for _, loss in own)]])
        names, sample_ids = tuple(means), tuple(ids for ids, _ in own)
        if stacked.device.type != "cuda":
            return cls(epoch, step, names, sample_ids, stacked, None)
        host = torch.empty(stacked.shape, pin_memory=True)
        host.copy_(stacked, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return cls(epoch, step, names, sample_ids, host, copied)

    def read(self) -> dict[str, float]:
        """The means by name, once they have arrived."""
        return dict(zip(self.names, self._arrived(), strict=False))

    def is_finite(self) -> bool:
        """Whether all of them are numbers."""
        return all(map(math.isfinite, self.read().values()))

    def suspects(self) -> list[np.ndarray[Any, Any]]:
        """Photographs of each of this process's micro-batches whose own loss is no number."""
        own = self._arrived()[len(self.names) :]
        return [ids for ids, loss in zip(self.sample_ids, own, strict=True) if not math.isfinite(loss)]

    def _arrived(self) -> list[float]:
        if self.copied is not None:
            self.copied.synchronize()
        found: list[float] = self.values.tolist()
        return found
