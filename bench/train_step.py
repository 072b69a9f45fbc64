"""A token-labeled training step against the same step with hard labels: model, batch, optimiser and loader equal.

usage: python bench/train_step.py [--batch 8] [--repeats 7] [--precision float32 bfloat16] [--device cpu] [--threads 1] [--record]

LV-ViT-S at 224 px as the recipe `released_code` trains it (token loss, class target from the map, MixToken), on random pixels with
well-formed label maps of 18x18x5. The two kinds of steps take turns; `ratio` is the median of the pairs, on a CPU in processor
seconds. `hard labels` is the same model and mixing with the class loss alone, on class indices; its token head still runs, as the
model's forward has it, but has no backward pass. `targets` and `token loss` say where the difference goes: all targets built, and
the token loss forward and backward on logits, as shares of the hard step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from record import ROOT, ResultLines

from tokenlabel.core.config import load_config
from tokenlabel.engine.device import autocast
from tokenlabel.labels import pooled_target, sparse_targets, token_cross_entropy
from tokenlabel.models import create_model
from tokenlabel.train.batches import MicroBatch
from tokenlabel.train.supervision import Supervision

CLASSES, IMAGE_PX, MAP, K, WORDS = 1000, 224, (18, 18), 5, 188  # WORDS: median of a real map's classes


def make_batch(batch: int) -> MicroBatch:
    """Random pixels, and maps whose classes are as many as a real one's."""
    generator = torch.Generator().manual_seed(0)
    words = torch.stack([torch.randperm(CLASSES, generator=generator)[:WORDS] for _ in range(batch)])
    picks = torch.rand(batch, *MAP, WORDS, generator=generator).topk(K, dim=-1).indices
    return MicroBatch(
        images=torch.randn(batch, 3, IMAGE_PX, IMAGE_PX, generator=generator),
        class_index=torch.randint(CLASSES, (batch,), generator=generator),
        affine=torch.tensor([[[0.6, 0.0, 0.2], [0.0, 0.5, 0.3]]]).repeat(batch, 1, 1),
        scores=(torch.rand(batch, *MAP, K, generator=generator) * 12).sort(-1, descending=True).values.half(),
        classes=words[torch.arange(batch)[:, None, None, None], picks].to(torch.int32),
        tail=None,
        skipped=0,
        sample_ids=np.arange(batch, dtype=np.uint64),
    )


class Step:
    """One kind of training step on a model of its own."""

    def __init__(self, name: str, recipe: dict[str, Any], device: torch.device, precision: torch.dtype) -> None:
        torch.manual_seed(0)
        self._model = create_model(name, num_classes=CLASSES, image_px=IMAGE_PX).to(device).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._supervision = Supervision(recipe, CLASSES, self._model.grid, IMAGE_PX, 0)
        self._device, self._precision, self._number = device, precision, 0

    def __call__(self, batch: MicroBatch) -> None:
        self._number += 1
        self._optimizer.zero_grad(set_to_none=True)
        with autocast(self._device, self._precision):
            loss, _ = self._supervision.loss(self._model, batch, 0, self._number)
        loss.backward()
        self._optimizer.step()


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    clock = (
        time.perf_counter if device.type == "cuda" else time.process_time
    )  # which other jobs on the machine do not slow
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def part_seconds(batch: MicroBatch, device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of what token labels add to a step."""
    scores, classes = batch.scores, batch.classes
    assert scores is not None
    assert classes is not None
    targets = sparse_targets(scores, classes, None, (14, 14), CLASSES, affine=batch.affine)
    logits = torch.randn(batch.images_count, 14 * 14, CLASSES, device=device, requires_grad=True)
    parts = {
        "targets": lambda: (
            sparse_targets(scores, classes, None, (14, 14), CLASSES, affine=batch.affine),
            pooled_target(scores, classes, None, CLASSES, affine=batch.affine),
        ),
        "token loss": lambda: token_cross_entropy(logits, targets).backward(),
    }
    return {
        name: statistics.median(seconds_of(work, device) for _ in range(3 * repeats)) for name, work in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lvvit_s", help="one of ours (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="photographs a step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of steps (default: %(default)s)")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write bench/results/train_step.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ResultLines("train_step", fresh=True) if args.record else None
    device = torch.device(args.device)
    config = load_config(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    token = config.recipes["released_code"].model_dump(mode="json")
    hard = token | {"supervision": "hard", "class_target": "label"}
    labeled = make_batch(args.batch).to(device)
    print(f"{args.model}, batch {args.batch}, {device.type}")
    print(f"{'precision':10} {'hard s':>8} {'token s':>8} {'ratio':>7} {'targets':>8} {'token loss':>10}")
    for name in args.precision:
        precision = getattr(torch, name)
        steps = {
            kind: Step(args.model, recipe, device, precision) for kind, recipe in (("hard", hard), ("token", token))
        }
        taken: dict[str, list[float]] = {kind: [] for kind in steps}
        for number in range(args.repeats + 1):
            for kind in ("hard", "token") if number % 2 else ("token", "hard"):
                step = steps[kind]
                taken[kind].append(seconds_of(lambda step=step: step(labeled), device))  # type: ignore[misc]
        taken = {kind: seconds[1:] for kind, seconds in taken.items()}  # the first of each warms up
        hard_s, token_s = (statistics.median(taken[kind]) for kind in ("hard", "token"))
        parts = part_seconds(labeled, device, args.repeats)
        row = {
            "model": args.model,
            "batch": args.batch,
            "device": device.type,
            "precision": name,
            "hard_s": hard_s,
            "token_s": token_s,
            "ratio": statistics.median(t / h for t, h in zip(taken["token"], taken["hard"], strict=True)),
            "targets_share": parts["targets"] / hard_s,
            "token_loss_share": parts["token loss"] / hard_s,
        }
        print(
            f"{name:10} {hard_s:8.3f} {token_s:8.3f} {row['ratio']:7.3f} {row['targets_share']:8.2%} "
            f"{row['token_loss_share']:10.2%}"
        )
        if lines:
            lines.add(**row)


if __name__ == "__main__":
    main()
