"""Why a training stopped, in one line that says what to do: a loss that is not finite, memory that did not suffice.

The loop raises the first and runs its steps inside `explaining_memory`. Nothing here decides whether to go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..core.errors import TokenLabelError

NAMED = 8  # photographs in a message
# what allocators say that have no exception of their own; the last two are loader processes that the kernel killed
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|unable to mmap|Cannot allocate memory|insufficient shared memory"
    r"|DataLoader worker .*(?:killed by signal: Killed|killed by signal: Bus error|exited unexpectedly)"
)
# what a GPU's libraries say where they ask for memory beside torch's allocator
_NO_GPU_MEMORY = re.compile(
    r"(?:CUDA|HIP) (?:error: )?out of memory|(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED|MPS backend out of memory"
)


class TrainingError(TokenLabelError):
    """A training that cannot go on."""


def explain_non_finite(
    *, epoch: int, step: int, values: Mapping[str, float], learning_rate: float, checkpoint: str | None,
    sample_paths: Sequence[str], clipped: bool = False, precision: torch.dtype | None = None,
) -> TrainingError:  # fmt: skip
    """The error for a loss or gradient that is not finite.

    Args:
        epoch: from 0, as in metrics.jsonl.
        step: of the epoch, from 0.
        values: the step's loss and its parts.
        learning_rate: of the step.
        checkpoint: path of the last good one; None: there is none yet.
        sample_paths: photographs of the micro-batches whose loss it was; of the step where it was none's own.
        clipped: whether the recipe clips gradients already.
        precision: of the training.
    """
    said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    named = ", ".join(sample_paths[:NAMED])
    if len(sample_paths) > NAMED:
        named += f" and {len(sample_paths) - NAMED} more"
    remedy = "Lower the recipe's learning_rate" + (
        " (a new run)" if clipped else " or set its clip_norm to 1.0 (a new run)"
    )
    if precision != torch.float32:
        remedy += (
            ", or set machine.precision to float32 and run the same command again, which continues from that checkpoint"
        )
    return TrainingError(
        f"epoch {epoch}, step {step}: the loss is not finite ({said}) at learning rate {learning_rate:.3g}. "
        f"Last good checkpoint: {checkpoint or 'none yet'}. Photographs: {named or 'unknown'}. {remedy}."
    )


@contextmanager
def explaining_memory(machine: Mapping[str, Any]) -> Iterator[None]:
    """Turns a failed allocation inside the block, on a GPU or the CPU, into a TrainingError that names what lowers memory.

    Args:
        machine: of the training; with `segments` it is one for segmentation, which has settings of its own.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError) or bool(_NO_GPU_MEMORY.search(str(error)))
        if not on_gpu and not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        in_loader = "DataLoader worker" in str(error) or "shared memory" in str(error)
        remedies = _loader_remedies(machine) if in_loader else _remedies(machine)
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ [KMGT]iB)|tried to allocate (\d+) bytes", str(error))
        amount = f" (asked for {asked[1] or f'{int(asked[2]) / 2**30:.2f} GiB'})" if asked else ""
        place = "out of memory on the GPU" if on_gpu else "out of memory on this machine"
        if in_loader:
            place = "a loader process was killed, most likely because memory did not suffice"
        raise TrainingError(
            f"{place}{amount}. What lowers it: {'; '.join(remedies)}. "
            "Then run the same command again; it continues from the last checkpoint."
        ) from error


def _remedies(machine: Mapping[str, Any]) -> list[str]:
    """Settings that lower a training's memory, each with its present and its next sensible value."""
    found = []
    segments = machine.get("segments", False)
    if machine["micro_batch"] > 1:
        smaller, key = machine["micro_batch"] // 2, "segment_micro_batch" if segments else "micro_batch"
        found.append(f"machine.{key} {machine['micro_batch']} -> {smaller} (gradients add up to the same batch_size)")
    if not machine["grad_checkpointing"]:
        found.append("machine.grad_checkpointing false -> true (a third more time)")
    if machine["precision"] == "float32":
        found.append("machine.precision float32 -> auto (half the bytes where the processor has them)")
    if machine["sharding"] == "none" and not segments:
        found.append("machine.sharding none -> fsdp (with two processes or more)")
    return found or [f"a smaller model or {'crop_px' if segments else 'image_px'}"]


def _loader_remedies(machine: Mapping[str, Any]) -> list[str]:
    found = []
    if machine["workers"] > 0:
        found.append(f"machine.workers {machine['workers']} -> {machine['workers'] // 2}")
    if machine["prefetch_batches"] > 1:
        found.append(f"machine.prefetch_batches {machine['prefetch_batches']} -> {machine['prefetch_batches'] // 2}")
    key = "segment_mem_mb" if machine.get("segments", False) else "train_mem_mb"
    return [*found, f"or grant the job more memory (machine.{key}; in a container a larger /dev/shm)"]
