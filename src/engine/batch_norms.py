"""Batch norms' running statistics in several processes: what one process would have after the same micro-batches.

Each process sees a share of a step's micro-batches, and a running mean depends on their order. An update is
r -> (1 - m) r + m b, so the updates of all processes compose by one sum a step. Called by `parallel`; statistics of the
batch itself stay each micro-batch's own, as with one process. Norms that torch synchronises (a segmenter's heads on GPUs) are left
to it: their statistics are of all processes' images, so the processes' running ones are equal already.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .processes import Processes


class RunningStatistics:
    """The running means and variances of a model, brought together at the end of each step.

    Args:
        model: on its device.
        processes: of the training.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        norms = [
            m for m in model.modules()
            if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm) and m.track_running_stats and m.momentum
        ]  # fmt: skip
        self._processes = processes
        self._buffers = [
            buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None
        ]
        self._counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        if norms:
            device = self._buffers[0].device
            sizes = torch.tensor([buffer.numel() for buffer in self._buffers], device=device)
            momenta = torch.tensor([norm.momentum for norm in norms for _ in range(2)], device=device)
            self._momentum = momenta.double().repeat_interleave(sizes)
        self._seen: list[torch.Tensor | None] = []  # of this step's micro-batches: m b, None for an empty one

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def before(self) -> None:
        """Before a forward pass in training."""
        self._before = self._flat()
        if not self._seen:
            self._at_start = self._before

    def after(self, *, empty: bool, last: bool) -> None:
        """After it.

        Args:
            empty: the pass saw no photographs.
            last: it was this process's last of the step.
        """
        self._seen.append(None if empty else self._flat() - (1 - self._momentum) * self._before)
        if last:
            self._share()
            self._seen = []

    def _flat(self) -> torch.Tensor:
        return torch.cat([buffer.detach().flatten() for buffer in self._buffers]).double()

    @torch.no_grad()
    def _share(self) -> None:
        count, rank = self._processes.count, self._processes.rank
        read = torch.zeros(
            len(self._seen) * count, dtype=torch.int64
        )  # of the step's micro-batches: 1 where it had photographs
        read[rank::count] = torch.tensor([update is not None for update in self._seen])
        own = int(read.sum())
        read = self._processes.sum(read)
        total = torch.zeros_like(self._momentum)
        for number, update in zip(range(rank, len(read), count), self._seen, strict=True):
            if update is not None:
                total += (1 - self._momentum) ** int(read[number + 1 :].sum()) * update
        merged = (1 - self._momentum) ** int(read.sum()) * self._at_start + self._processes.sum(total)
        sizes = [buffer.numel() for buffer in self._buffers]
        for buffer, values in zip(self._buffers, torch.split(merged, sizes), strict=True):
            # .data: the graph of this step holds them, though the backward pass of training does not read them
            buffer.data.copy_(values.view_as(buffer))
        for counter in self._counters:
            counter.data.add_(int(read.sum()) - own)
