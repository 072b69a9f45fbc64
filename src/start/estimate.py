"""How long a study takes on this machine: a few of its own photographs timed through its networks, and multiplied up.

Called by `command`, which also chooses sizes and epochs by it. What no timing covers is a constant with its reason beside it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from ..data.images import decode_image, resize_and_centre_crop, to_tensor
from ..data.pixels import read_view
from ..engine.device import autocast, choose_device, choose_precision, set_threads
from ..models import create_model
from ..models.complexity import count_multiply_adds, count_parameters
from ..models.pretrained import create_backbone
from .networks import Network

SIZES = ((128, 64), (160, 96), (224, 128), (288, 160), (384, 224))  # pixels of annotator and student
EPOCHS = (30, 20, 10)
FEWEST_EPOCHS = 5  # where nothing fits
BATCH = 16  # photographs of a timed batch
REPEATS = 2
AUGMENTATION = 1.5  # a training view over a plain one, for RandAugment's operations; a guess
OTHER_JOBS = 4  # Snakemake itself, label maps, table, report: a process start each
HEADS_S = 6.0  # an annotator's heads, some 30 logistic regressions; a guess for up to some thousand photographs


@dataclass(frozen=True)
class Speed:
    """What one photograph costs here, in seconds.

    Attributes:
        annotate_s: decoding and the annotator's forward pass.
        evaluate_s: decoding and the student's forward pass.
        train_s: decoding, augmentation, forward, backward and the optimiser's step.
        grid: rows and columns of the annotator's label maps.
    """

    annotate_s: float
    evaluate_s: float
    train_s: float
    grid: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Sizes and epochs of a study, and what they cost.

    Attributes:
        annotator_px: pixels of stage 1.
        student_px: pixels of stage 2.
        epochs: of each training.
        grid: rows and columns of the label maps.
        seconds: stage -> seconds.
        speed: what was timed at these sizes.
        start_s: seconds that a job takes before it works.
    """

    annotator_px: int
    student_px: int
    epochs: int
    grid: tuple[int, int]
    seconds: dict[str, float]
    speed: Speed
    start_s: float

    @property
    def minutes(self) -> float:
        """Of the whole study."""
        return sum(self.seconds.values()) / 60


def choose_plan(
    annotator: Network, student: Network, counts: tuple[int, int, int], photographs: tuple[Path, ...], median_side: int,
    minutes: float, survey_s: float, threads: int,
) -> Plan:  # fmt: skip
    """The largest sizes, then the most epochs, that fit the time; the smallest ones where none do.

    Args:
        annotator: the network that is adapted.
        student: the network that is trained.
        counts: training photographs, validation photographs, classes.
        photographs: a few to time.
        median_side: pixels of the photographs' shorter side; a student of more than twice as many learns nothing more.
        minutes: that the study may take.
        survey_s: that decoding all photographs once took.
        threads: of a job.
    """
    set_threads(threads)
    start_s = _process_start_s()
    best: Plan | None = None
    for annotator_px, student_px in SIZES:  # small ones first: timing them takes less than the sizes that do not fit
        if best is not None and student_px > 2 * median_side:
            break
        speed = _measure_speed(annotator, student, counts[2], photographs, annotator_px, student_px, threads)
        plans = [
            Plan(
                annotator_px,
                student_px,
                epochs,
                speed.grid,
                _seconds(speed, counts, epochs, survey_s, start_s),
                speed,
                start_s,
            )
            for epochs in EPOCHS
        ]
        fitting = next((plan for plan in plans if plan.minutes <= minutes), None)
        if fitting is None:
            if best is None:
                seconds = _seconds(speed, counts, FEWEST_EPOCHS, survey_s, start_s)
                best = Plan(annotator_px, student_px, FEWEST_EPOCHS, speed.grid, seconds, speed, start_s)
            break
        best = fitting
    assert best is not None  # there is a smallest size
    return best


def network_cost(network: Network, image_px: int) -> tuple[float, float]:
    """10^6 parameters and 10^9 multiply-adds of one image."""
    backbone = create_backbone(network.architecture, 1000, image_px, None)
    return count_parameters(backbone) / 1e6, count_multiply_adds(backbone, image_px) / 1e9


def _seconds(
    speed: Speed, counts: tuple[int, int, int], epochs: int, survey_s: float, start_s: float
) -> dict[str, float]:
    train, val, _ = counts
    return {
        "list photographs, set validation ones aside": start_s + survey_s,
        "adapt the annotator": start_s + (train + val) * speed.annotate_s + HEADS_S,
        "measure the annotator alone": start_s + val * speed.annotate_s,
        "label the training photographs": start_s + train * speed.annotate_s,
        "fine-tune on own labels": start_s + epochs * train * speed.train_s,
        "fine-tune with token labels": start_s + epochs * train * speed.train_s,
        "measure both": 2 * (start_s + val * speed.evaluate_s),
        "maps, table, report": OTHER_JOBS * start_s,
    }


def _measure_speed(
    annotator: Network, student: Network, num_classes: int, photographs: tuple[Path, ...], annotator_px: int,
    student_px: int, threads: int,
) -> Speed:  # fmt: skip
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    encoded = [path.read_bytes() for path in photographs]
    view_s = _median_s(read_view(content, annotator_px, "squash", "bicubic") for content in encoded)
    mean = (0.5, 0.5, 0.5)
    plain_s = _median_s(
        to_tensor(resize_and_centre_crop(decode_image(content), student_px, 1.0, "bicubic"), mean, mean)
        for content in encoded
    )

    def timed(work: Callable[[], object]) -> float:
        times = []
        for _ in range(1 + REPEATS):
            before = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
        return min(times[1:]) / BATCH  # the first pays for memory and kernels

    labeller = create_model(f"timm/{annotator.architecture}", num_classes=1000, image_px=annotator_px)
    labeller = labeller.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, annotator_px, annotator_px, device=device).contiguous(
        memory_format=torch.channels_last
    )
    with torch.inference_mode(), autocast(device, precision):
        grid = labeller.train()(images[:2]).grid
        labeller.eval()
        forward_s = timed(lambda: labeller(images))

    model = create_model(f"timm/{student.architecture}", num_classes=num_classes, image_px=student_px).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    small = torch.rand(BATCH, 3, student_px, student_px, device=device)
    targets = torch.arange(BATCH, device=device) % num_classes

    def step() -> None:
        with autocast(device, precision):
            output = model(small)
            tokens = output.token_logits
            loss = functional.cross_entropy(output.class_logits, targets)
            loss = loss + functional.cross_entropy(tokens.flatten(0, 1), targets.repeat_interleave(tokens.shape[1]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    model.train()
    step_s = timed(step)
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        look_s = timed(lambda: model(small))
    return Speed(
        annotate_s=forward_s + view_s / threads,
        evaluate_s=look_s + plain_s,
        train_s=step_s + AUGMENTATION * plain_s,
        grid=(int(grid[0]), int(grid[1])),
    )


def _median_s(work: Iterator[object]) -> float:
    times = []
    before = time.perf_counter()
    for _ in work:
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return statistics.median(times)


def _process_start_s() -> float:
    """Seconds that a job takes before it works: Python loads torch and timm."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision, timm"], check=False, capture_output=True)
    return time.perf_counter() - before
