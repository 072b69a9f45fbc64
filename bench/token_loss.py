"""Sparse targets and loss against the released code (tlt 0.2.0) and against hard-label cross-entropy, in one run.

usage: python bench/token_loss.py [--classes 10 100 1000 21841] [--batch 16 64] [--repeats 3] [--tlt FOLDER] [--record] [--figure]

Every figure is a ratio of paired runs (median); memory is counted exactly, by the allocator's own events. The released side
needs `pip install --no-deps tlt==0.2.0`, or --tlt with the folder tlt of an unpacked copy; only its data/mixup.py and
loss/cross_entropy.py are loaded. Columns, other / ours but for "vs labels" and "memory", which are ours / other:
targets  tokens and class target made from maps, against get_labelmaps_with_coords (label_size 14)
loss     loss with gradient, targets ready, against SoftTargetCrossEntropy on the dense target
both     the two together, as a training step pays them
vs labels, memory    loss with gradient against torch's cross_entropy with hard labels: time, peak extra bytes
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from record import ROOT, ResultLines, machine
from torch.nn.functional import cross_entropy

from tokenlabel.labels import pooled_target, sparse_targets, token_cross_entropy

GRID, MAP, K = (14, 14), (18, 18), 5
WORDS = 188  # distinct classes in a 576 px map of EfficientNet-Lite0, median of 200 crops
MOST_PAIRS, ENOUGH_S = 101, 3.0
RELEASED_GB = 12.0  # the dense way is left out above: map, aligned map, target, log-probabilities and their gradients
RELEASED_ARRAYS = 7  # arrays of (batch, 197 tokens, classes) float32 that it holds at its peak, rounded up


class Released(NamedTuple):
    """The released code's own functions."""

    targets: Callable[..., torch.Tensor]
    loss: torch.nn.Module


class Inputs(NamedTuple):
    """One batch: maps and boxes in our layout and in the released one, and logits."""

    scores: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor
    raw: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor


def load_released(folder: Path | None) -> Released | None:
    """Loads two files of tlt alone; the package's own imports ask for a timm of its time."""
    if folder is None:
        found = importlib.util.find_spec("tlt")
        if found is None or found.origin is None:
            return None
        folder = Path(found.origin).parent

    def module(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise SystemExit(f"{path}: not there; --tlt expects the folder tlt of an unpacked tlt 0.2.0.")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    targets = module(folder / "data" / "mixup.py").get_labelmaps_with_coords
    return Released(targets, module(folder / "loss" / "cross_entropy.py").SoftTargetCrossEntropy())


def make_inputs(batch: int, classes: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    words = torch.stack([torch.randperm(classes, generator=generator)[:WORDS] for _ in range(batch)])
    picks = torch.rand(batch, *MAP, words.shape[1], generator=generator).topk(K, dim=-1).indices
    stored = words[:, None, None, :].expand(-1, *MAP, -1).gather(-1, picks)
    scores = (torch.rand(batch, *MAP, K, generator=generator) * 10).sort(-1, descending=True).values.half()
    corner = torch.rand(batch, 2, generator=generator) * 0.4
    raw = torch.zeros(batch, 3, K, *MAP)
    raw[:, 0], raw[:, 1] = scores.float().permute(0, 3, 1, 2), stored.float().permute(0, 3, 1, 2)
    raw[:, 2, 0, 0, :2], raw[:, 2, 0, 0, 2:4] = corner, 0.5
    return Inputs(
        scores, stored, torch.cat((corner, corner + 0.5), dim=1), raw,
        torch.randn(batch, GRID[0] * GRID[1], classes, generator=generator).requires_grad_(),
        torch.randint(0, classes, (batch * GRID[0] * GRID[1],), generator=generator),
    )  # fmt: skip


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def paired(other: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Medians of other / ours and of either's seconds: at least `repeats` pairs, more of short runs; the first warms up."""
    seconds(other), seconds(ours)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < repeats or (len(pairs) < MOST_PAIRS and sum(map(sum, pairs)) < ENOUGH_S):
        pairs.append((seconds(other), seconds(ours)))
    others, owns = zip(*pairs, strict=True)
    return statistics.median(a / b for a, b in pairs), statistics.median(others), statistics.median(owns)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes that were allocated at once beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    present = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak


def measure(batch: int, classes: int, repeats: int, released: Released | None) -> dict[str, Any]:
    """One row of the table."""
    given = make_inputs(batch, classes)
    maps = given.scores, given.classes, given.boxes

    def backward(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            given.logits.grad = None
            loss().backward()

        return run

    targets = sparse_targets(*maps, grid=GRID, num_classes=classes)
    ours = backward(lambda: token_cross_entropy(given.logits, targets))
    plain = backward(lambda: cross_entropy(given.logits.flatten(0, 1), given.labels))
    faster, labels_s, ours_s = paired(plain, ours, repeats)
    row: dict[str, Any] = {
        "batch": batch,
        "classes": classes,
        "vs_labels": 1 / faster,
        "labels_s": labels_s,
        "ours_s": ours_s,
    }
    for name, run in (("ours_bytes", ours), ("labels_bytes", plain)):
        given.logits.grad = None
        row[name] = peak_bytes(run)
    given.logits.grad = None
    row["memory"] = row["ours_bytes"] / row["labels_bytes"]

    dense_gb = RELEASED_ARRAYS * 4 * batch * (GRID[0] * GRID[1] + 1) * classes / 1e9
    if released is None or dense_gb > RELEASED_GB:
        row["skipped"] = "no tlt" if released is None else f"released side needs about {dense_gb:.0f} GB"
        return row | {"targets": None, "loss": None, "both": None}

    def make() -> None:
        sparse_targets(*maps, grid=GRID, num_classes=classes)
        pooled_target(*maps, num_classes=classes)

    def make_released() -> torch.Tensor:
        return released.targets(
            given.raw.clone(), classes, label_size=GRID[0], device="cpu"
        )  # it writes into its input

    row["targets"], row["released_targets_s"], row["targets_s"] = paired(make_released, make, repeats)
    dense = make_released()[..., 2:].transpose(1, 2).reshape(-1, classes)
    # both sides compute the same: `raw` holds x0 where the released code expects y0, which undoes its swap
    with torch.no_grad():
        expected = released.loss(given.logits.flatten(0, 1), dense)
        torch.testing.assert_close(token_cross_entropy(given.logits, targets), expected, rtol=1e-5, atol=1e-5)
    row["loss"], row["released_loss_s"], loss_s = paired(
        backward(lambda: released.loss(given.logits.flatten(0, 1), dense)), ours, repeats
    )
    row["both"] = (row["released_targets_s"] + row["released_loss_s"]) / (row["targets_s"] + loss_s)
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios against the number of classes, one line a batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        ("targets", "targets: released / ours"),
        ("loss", "loss + gradient: released / ours"),
        ("vs_labels", "loss + gradient: ours / hard-label cross_entropy"),
        ("memory", "peak extra memory: ours / hard-label cross_entropy"),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, panels, strict=True):
        for batch in sorted({row["batch"] for row in rows}):
            line = [(row["classes"], row[key]) for row in rows if row["batch"] == batch and row[key] is not None]
            if line:
                axis.plot(*zip(*line, strict=True), marker="o", label=f"batch {batch}")
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_xscale("log")
        if key in ("targets", "loss"):
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("classes")
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000, 21841])
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tlt", type=Path, help="folder tlt of an unpacked tlt 0.2.0; otherwise the installed one")
    parser.add_argument("--record", action="store_true", help="write bench/results/token_loss.jsonl")
    parser.add_argument("--figure", action="store_true", help="draw docs/figures/token_loss.png")
    args = parser.parse_args()
    released = load_released(args.tlt)
    if released is None:
        print("tlt is not installed: its columns stay empty (pip install --no-deps tlt==0.2.0, or --tlt FOLDER)")
    lines = ResultLines("token_loss", fresh=True) if args.record else None
    print(
        f"{machine()['processor']}, {torch.get_num_threads()} threads, float32, {GRID[0] * GRID[1]} tokens, released / ours"
    )
    print(
        f"{'batch':>5} {'classes':>7} {'targets':>8} {'loss':>8} {'both':>8}   {'vs labels':>9} {'memory':>7}   {'ours, ms':>9}"
    )
    rows = []
    for batch in args.batch:
        for classes in args.classes:
            row = measure(batch, classes, args.repeats, released)
            rows.append(row)
            ratios = [
                f"{row[key]:8.2f}" if row[key] is not None else f"{'-':>8}" for key in ("targets", "loss", "both")
            ]
            print(
                f"{batch:5d} {classes:7d} {' '.join(ratios)}   {row['vs_labels']:9.2f} {row['memory']:7.2f}   "
                f"{row['ours_s'] * 1e3:9.1f}   {row.get('skipped', '')}".rstrip(),
                flush=True,
            )
            if lines is not None:
                lines.add(**row, threads=torch.get_num_threads(), repeats=args.repeats)
    if args.figure:
        draw(rows, ROOT / "docs" / "figures" / "token_loss.png")


if __name__ == "__main__":
    sys.exit(main())
