"""One process against two on this machine's processors, the same global batch: how much of the second core is left.

usage: python bench/train_scaling.py [--record]. Starts real processes by `tokenlabel.engine.launch`, each with one thread and
bound to one core; the model, its gradients over gloo, the optimiser and the batch norms' exchange are what `fit` uses. The runs
of both numbers alternate, so that a slow minute meets both; the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, this folder is where Python looks

from bench.record import ResultLines  # noqa: E402

# (model, its settings, pixels, photographs of a step, of a micro-batch)
CASES = {
    "LV-ViT-T": ("lvvit_t", {}, 224, 16, 4),
    "LV-ViT-S": ("lvvit_s", {}, 224, 8, 4),
    "LV-ViT of 4 blocks, width 96": (
        "lvvit_t",
        {"depth": 4, "width": 96, "heads": 3, "stem_channels": 32},
        112,
        32,
        16,
    ),
}
STEPS, PAIRS = 4, 5


def train(case: str, sharding: str, out: Path) -> None:
    """Takes steps in this process among others; the main one writes images/s."""
    from timm.optim import create_optimizer_v2

    from tokenlabel.engine.parallel import ParallelModel
    from tokenlabel.engine.processes import join_processes
    from tokenlabel.models import create_model

    architecture, settings, image_px, batch, micro_batch = CASES[case]
    torch.set_num_threads(1)
    with join_processes("cpu") as processes:
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[processes.rank]])
        torch.manual_seed(0)
        model = create_model(architecture, num_classes=1000, image_px=image_px, **settings)
        parallel = ParallelModel(model, processes, sharding=sharding)
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
        images, classes = torch.rand(micro_batch, 3, image_px, image_px), torch.arange(micro_batch)
        share = batch // micro_batch // processes.count
        seconds = []
        for _ in range(1 + STEPS):
            processes.barrier()
            began = time.perf_counter()
            for number in range(share):
                with torch.enable_grad() if number == share - 1 else parallel.accumulating():
                    output = parallel.forward(images)
                    tokens = output.token_logits.flatten(0, 1)
                    loss = torch.nn.functional.cross_entropy(output.class_logits, classes)
                    loss = loss + torch.nn.functional.cross_entropy(
                        tokens, classes.repeat_interleave(len(tokens) // micro_batch)
                    )
                    (loss / share).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            processes.barrier()
            seconds.append(time.perf_counter() - began)
        if processes.is_main:
            out.write_text(json.dumps(batch / statistics.median(seconds[1:])))


def measured(case: str, processes: int, sharding: str) -> float:
    """Images/s of a case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "images_per_s.json"
        command = [sys.executable, "-m", "tokenlabel.engine.launch", "--processes", str(processes)]
        job = ["bench.train_scaling", "--case", case, "--sharding", sharding, "--out", str(out)]
        subprocess.run([*command, *job], cwd=ROOT, check=True)
        return float(json.loads(out.read_text()))


def main() -> None:
    """Measures all cases in alternating pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write bench/results/train_scaling.jsonl")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--case", choices=CASES, help="of one process, which this is; used by the benchmark itself")
    parser.add_argument("--sharding", default="none")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.out:
        train(args.case, args.sharding, args.out)
        return
    results = ResultLines("train_scaling", fresh=True) if args.record else None
    for case, (_, _, image_px, batch, micro_batch) in CASES.items():
        if args.case not in (None, case):
            continue
        speeds: dict[str, list[float]] = {"one": [], "DDP": [], "FSDP": []}
        for _ in range(args.pairs):
            speeds["one"].append(measured(case, 1, "none"))
            speeds["DDP"].append(measured(case, 2, "none"))
            speeds["FSDP"].append(measured(case, 2, "fsdp"))
        for way in ("DDP", "FSDP"):
            ratios = [two / one for one, two in zip(speeds["one"], speeds[way], strict=True)]
            row = {
                "model": case, "image_px": image_px, "batch": batch, "micro_batch": micro_batch, "way": way,
                "one": statistics.median(speeds["one"]), "two": statistics.median(speeds[way]),
                "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
            }  # fmt: skip
            print(f"{case}, {way}: {row['one']:.1f} -> {row['two']:.1f} images/s, x {row['ratio']:.2f}", flush=True)
            if results:
                results.add(**row)


if __name__ == "__main__":
    main()
