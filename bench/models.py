"""Sizes and speeds of every model of the paper: one training and evaluation step of LV-ViT-S against timm's vit_small_patch16_224
per multiply-add, the table of models beside DeiT-S, and the ablations of Tables 8 to 10. Sizes are counted from the code.

python bench/models.py [--rounds 5] [--batch 8] [--record]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from counts import Published, ablations, published_models, size_of, wording
from record import ResultLines
from torch import Tensor, nn
from torch.nn import functional as F

from tokenlabel.models import TokenModel, count_multiply_adds, create_model, draw_mix_box

REFERENCE = "vit_small_patch16_224"
TABLE_BATCH, TABLE_ROUNDS = 2, 3  # of the table's passes; steps take --batch and --rounds
LARGE_GMACS = 20.0  # above, one image a pass; above five times that, one pair of passes, for they take seconds
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds_of(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def pairs_of(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, in turn, after one unmeasured round where there are several; which goes first alternates."""
    if rounds > 1:
        first(), second()
    pairs = []
    for index in range(rounds):
        if index % 2:
            late, early = seconds_of(second), seconds_of(first)
            pairs.append((early, late))
        else:
            pairs.append((seconds_of(first), seconds_of(second)))
    return pairs


def train_step(model: nn.Module, images: Tensor, classes: Tensor, precision: torch.dtype) -> None:
    """Forward and backward of a batch, both losses and MixToken where there are tokens."""
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        if isinstance(model, TokenModel):
            output = model(images, draw_mix_box(model.grid, 1.0, random.Random(0)))
            tokens = output.token_logits.flatten(0, 1)
            loss = F.cross_entropy(output.class_logits, classes)
            loss = loss + 0.5 * F.cross_entropy(tokens, classes.repeat_interleave(output.token_logits.shape[1]))
        else:
            loss = F.cross_entropy(model(images), classes)
    loss.backward()
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def eval_step(model: nn.Module, images: Tensor, precision: torch.dtype) -> None:
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        model(images)


def compare_steps(batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    """LV-ViT-S over timm's ViT-S: time of a step, and the same divided by the multiply-adds of a forward pass."""
    ours, theirs = create_model("lvvit_s"), timm.create_model(REFERENCE)
    work = count_multiply_adds(ours, 224) / count_multiply_adds(theirs, 224)
    images, classes = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    for precision, dtype in PRECISIONS.items():
        if dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
            continue  # emulated there, and several times slower than float32
        for kind in ("training", "evaluation"):
            for model in (ours, theirs):
                model.train(kind == "training")

            def step(model: nn.Module, kind: str = kind, dtype: torch.dtype = dtype) -> None:
                if kind == "training":
                    train_step(model, images, classes, dtype)
                else:
                    eval_step(model, images, dtype)

            pairs = pairs_of(lambda: step(ours), lambda: step(theirs), rounds)
            ratios = sorted(first / second / work for first, second in pairs)
            ours_s, theirs_s = (statistics.median(column) for column in zip(*pairs, strict=True))
            yield {
                "step": kind, "precision": precision, "batch": batch, "rounds": rounds, "work": work,
                "ours_ms": 1000 * ours_s / batch, "theirs_ms": 1000 * theirs_s / batch,
                "time": statistics.median(first / second for first, second in pairs),
                "per_multiply_add": statistics.median(ratios), "low": ratios[0], "high": ratios[-1],
            }  # fmt: skip


def speed(model: TokenModel, reference: TokenModel, batch: int, rounds: int) -> float:
    """Images per second in eval mode, DeiT-S being 1: median of paired passes over batches of the same length."""

    def run(network: TokenModel) -> Callable[[], None]:
        images = torch.randn(batch, 3, network.image_px, network.image_px)
        return lambda: eval_step(network, images, torch.float32)

    return statistics.median(theirs / ours for ours, theirs in pairs_of(run(model), run(reference), rounds))


def table_row(published: Published, reference: TokenModel) -> dict[str, Any]:
    """Counting runs the model once, so even a single pair of passes does not find it cold."""
    model = create_model(published.architecture, image_px=published.image_px).eval()
    size = size_of(model)
    assert size.gmacs is not None
    batch = 1 if size.gmacs > LARGE_GMACS else TABLE_BATCH
    rounds = 1 if size.gmacs > 5 * LARGE_GMACS else TABLE_ROUNDS
    printed = {
        field: "; ".join(f"{row[key]} ({row['table']})" for row in published.printed if key in row) or None
        for field, key in (("paper_m", "printed_m"), ("paper_gmacs", "printed_gmacs"))
    }
    return {
        "model": published.name, "image_px": published.image_px, "tokens": size.tokens,
        "ours_m": size.parameters_m["both heads"], "class_head_m": size.parameters_m["class head only"],
        "official_m": published.parameters_m, "official_source": f"{published.source}, {published.reading}", **printed,
        "gmacs": size.gmacs, "speed": speed(model, reference, batch, rounds), "batch": batch, "rounds": rounds,
    }  # fmt: skip


def ablation_rows() -> Iterator[dict[str, Any]]:
    for row, model in ablations():
        size = size_of(model)
        yield {
            "table": row["table"], "row": row["row"], "printed_m": row["printed_m"],
            "ours_m": size.parameters_m["both heads"], "class_head_m": size.parameters_m["class head only"],
            "gmacs": size.gmacs, "fits": wording(row["fits"], row.get("why")),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="paired steps of each comparison; the median counts")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--record", action="store_true", help="write bench/results/models.jsonl")
    args = parser.parse_args()
    lines = ResultLines("models", fresh=True) if args.record else None

    def keep(kind: str, row: dict[str, Any]) -> None:
        if lines:
            lines.add(kind=kind, threads=torch.get_num_threads(), **row)

    for row in compare_steps(args.batch, args.rounds):
        keep("step", row)
        print(
            f"{row['step']:10} {row['precision']:8}: LV-ViT-S over {REFERENCE}: {row['per_multiply_add']:.3f} of its time per "
            f"multiply-add ({row['low']:.3f} to {row['high']:.3f}), {row['time']:.2f} of its time at {row['work']:.2f} of its work"
        )
    print(
        f"\n{'model':12} {'px':>4} {'tokens':>6} {'ours M':>8} {'official':>8} {'paper':>22} {'GMACs':>7} {'DeiT-S = 1':>10}"
    )
    reference = create_model("timm/deit_small_patch16_224").eval()
    for published in published_models():
        row = table_row(published, reference)
        keep("model", row)
        print(
            f"{row['model']:12} {row['image_px']:4} {row['tokens']:6} {row['ours_m']:8.3f} {row['official_m']:8.3f} "
            f"{row['paper_m'] or '':>22} {row['gmacs']:7.2f} {row['speed']:10.3f}"
        )
    print(f"\n{'ablation':44} {'printed':>7} {'ours M':>8} {'GMACs':>6}  fits")
    for row in ablation_rows():
        keep("ablation", row)
        name = f"{row['table']}, {row['row']}"
        print(f"{name:44} {row['printed_m']:>7} {row['ours_m']:8.3f} {row['gmacs']:6.2f}  {row['fits']}")


if __name__ == "__main__":
    main()
