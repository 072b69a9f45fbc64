"""How fast a model classifies on this machine, and the memory that it takes: facts of the machine, in no digest.

The forward pass alone: pictures lie on the device already. Called by `evaluation`, after the accuracy.
"""

from __future__ import annotations

import platform
import resource
import statistics
import time
from typing import Any

import torch
from torch import nn

from ..engine.device import autocast

TIMED_BATCHES = (3, 50)  # at least and at most, where the time allows it


@torch.inference_mode()
def measure_speed(
    model: nn.Module, image_px: int, batch: int, budget_s: float, *, device: torch.device, precision: torch.dtype
) -> dict[str, Any]:
    """Times batches of noise until the time is spent.

    Args:
        model: in eval mode, on the device.
        image_px: side of the images.
        batch: photographs at once on a GPU; elsewhere fewer where the time would not do for four such batches.
        budget_s: s, about what this may take; 0: nothing is measured.
        device: of the model.
        precision: of autocast.

    Returns:
        images_per_s (median batch), speed_batch, speed_device, speed_precision; peak_memory_mb (10^6 bytes) and peak_memory_of:
        `gpu` (the most that PyTorch held at once while it ran) or `process` (the most resident memory of the whole job so far).
        Empty where nothing is measured.
    """
    if budget_s <= 0:
        return {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        one = _images(1, image_px, device)
        _seconds(model, one, device, precision)  # the first pass also plans and allocates
        batch = max(1, min(batch, int(budget_s / 4 / _seconds(model, one, device, precision))))
    images = _images(batch, image_px, device)
    _seconds(model, images, device, precision)
    fewest, most = TIMED_BATCHES
    spent: list[float] = []
    while len(spent) < most and (sum(spent) < budget_s or len(spent) < fewest):
        spent.append(_seconds(model, images, device, precision))
        if sum(spent) > 2 * budget_s:  # a machine that is busy, or a batch far above the estimate
            break
    on_gpu = device.type == "cuda"
    peak_bytes = (
        torch.cuda.max_memory_allocated(device) if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "images_per_s": batch / statistics.median(spent),
        "speed_batch": batch,
        "speed_device": torch.cuda.get_device_name(device) if on_gpu else f"{device.type} {platform.machine()}",
        "speed_precision": str(precision).removeprefix("torch."),
        "peak_memory_mb": peak_bytes / 1e6,
        "peak_memory_of": "gpu" if on_gpu else "process",
    }


def _images(batch: int, image_px: int, device: torch.device) -> torch.Tensor:
    return torch.randn(batch, 3, image_px, image_px, device=device)


def _seconds(model: nn.Module, images: torch.Tensor, device: torch.device, precision: torch.dtype) -> float:
    _wait_for(device)
    started = time.perf_counter()
    with autocast(device, precision):
        model(images)
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    """GPUs work behind the program's back; a clock means something only when they are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
