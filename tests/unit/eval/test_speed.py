"""Speed and memory: of the forward pass, within the time that it may take."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from tokenlabel.eval.speed import measure_speed


class Sleepy(nn.Module):
    """Takes so long for each picture."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.batches = seconds, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        time.sleep(self.seconds * len(images))
        return images


def measure(model: nn.Module, batch: int, budget_s: float) -> dict[str, object]:
    return measure_speed(model, 8, batch, budget_s, device=torch.device("cpu"), precision=torch.float32)


def test_speed_is_pictures_over_seconds() -> None:
    found = measure(Sleepy(0.002), 4, 0.2)
    assert found["images_per_s"] == pytest.approx(500, rel=0.6)  # other work on the machine may double a sleep
    assert (found["speed_batch"], found["speed_precision"], found["peak_memory_of"]) == (4, "float32", "process")
    peak_mb = found["peak_memory_mb"]
    assert isinstance(peak_mb, float)
    assert 100 < peak_mb < 100_000


def test_a_slow_model_gets_smaller_batches() -> None:
    model = Sleepy(0.02)
    started = time.monotonic()
    found = measure(model, 128, 0.2)
    assert time.monotonic() - started < 5  # 128 at once would take 2.6 s, three and the warm-up 10
    assert found["speed_batch"] == max(model.batches) <= 3


def test_no_time_measures_nothing() -> None:
    model = Sleepy(1)
    assert measure(model, 8, 0) == {}
    assert model.batches == []
