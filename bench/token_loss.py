"""Sparse targets and loss against the dense way (RoIAlign of a zero-filled map, softmax, dense cross entropy), one run.

usage: python bench/token_loss.py [--classes 1000] [--batch 16] [--repeats 7]

Prints medians of paired runs and their ratio; the dense way is torchvision's roi_align and torch's own cross entropy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torchvision.ops import roi_align

from tokenlabel.labels import sparse_targets, token_cross_entropy

GRID, MAP, K = (14, 14), (18, 18), 5
WORDS = 190  # distinct classes in a 576 px map of EfficientNet-Lite0, median


def inputs(batch: int, classes: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    words = torch.stack([torch.randperm(classes, generator=generator)[:WORDS] for _ in range(batch)])
    picks = torch.rand(batch, *MAP, WORDS, generator=generator).topk(K, dim=-1).indices
    stored = words[:, None, None, :].expand(-1, *MAP, -1).gather(-1, picks)
    scores = (torch.rand(batch, *MAP, K, generator=generator) * 10).sort(-1, descending=True).values.half()
    corner = torch.rand(batch, 2, generator=generator) * 0.4
    boxes = torch.cat((corner, corner + 0.5), dim=1)
    logits = torch.randn(batch, GRID[0] * GRID[1], classes, generator=generator)
    return scores, stored, boxes, logits


def dense(scores: torch.Tensor, stored: torch.Tensor, boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    batch, classes = len(scores), logits.shape[-1]
    full = torch.zeros(batch, *MAP, classes).scatter_(-1, stored, scores.float()).permute(0, 3, 1, 2)
    scaled = boxes * torch.tensor([MAP[1], MAP[0], MAP[1], MAP[0]])
    aligned = roi_align(full, list(scaled[:, None]), GRID, sampling_ratio=-1, aligned=True)
    target = aligned.flatten(2).transpose(1, 2).softmax(-1)
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def sparse(scores: torch.Tensor, stored: torch.Tensor, boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    targets = sparse_targets(scores, stored, boxes, grid=GRID, num_classes=logits.shape[-1])
    return token_cross_entropy(logits, targets)


def timed(loss: Callable[..., torch.Tensor], arguments: tuple[torch.Tensor, ...]) -> tuple[float, torch.Tensor]:
    *rest, logits = arguments
    logits = logits.clone().requires_grad_()
    started = time.perf_counter()
    value = loss(*rest, logits)
    value.backward()
    return time.perf_counter() - started, value.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    arguments = inputs(args.batch, args.classes)
    pairs = []
    for repeat in range(args.repeats + 1):
        (dense_s, expected), (sparse_s, found) = timed(dense, arguments), timed(sparse, arguments)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if repeat:  # the first pair warms up
            pairs.append((dense_s, sparse_s))
    print(f"batch {args.batch}, {args.classes} classes, {torch.get_num_threads()} threads, targets + loss + gradient")
    print(f"dense  {statistics.median(d for d, _ in pairs) * 1e3:8.1f} ms (median of {args.repeats})")
    print(f"sparse {statistics.median(s for _, s in pairs) * 1e3:8.1f} ms")
    print(f"ratio  {statistics.median(d / s for d, s in pairs):8.2f}")


if __name__ == "__main__":
    main()
