"""Errors that say what to do: real failed allocations of torch, numpy and loader processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenlabel.engine.failures import TrainingError, explain_non_finite, explaining_memory

REPOSITORY = Path(__file__).resolve().parents[3]
MACHINE = {
    "micro_batch": 128, "grad_checkpointing": False, "precision": "float32", "sharding": "none", "workers": 8,
    "prefetch_batches": 4,
}  # fmt: skip


def test_a_loss_that_is_not_finite_names_step_rate_checkpoint_and_photographs() -> None:
    error = explain_non_finite(
        epoch=3, step=17, values={"loss": float("nan"), "class_loss": float("inf"), "token_loss": 5.2}, learning_rate=0.0016,
        checkpoint="results/runs/a/seed0/checkpoint-00000300.pt", sample_paths=[f"c/{n}.jpg" for n in range(20)],
    )  # fmt: skip
    said = str(error)
    assert (
        "epoch 3, step 17: the loss is not finite (loss nan, class_loss inf, token_loss 5.2) at learning rate 0.0016"
        in said
    )
    assert "checkpoint: results/runs/a/seed0/checkpoint-00000300.pt." in said
    assert "c/0.jpg, c/1.jpg, c/2.jpg, c/3.jpg, c/4.jpg, c/5.jpg, c/6.jpg, c/7.jpg and 12 more" in said
    for remedy in ("learning_rate", "clip_norm", "machine.precision"):
        assert remedy in said
    assert "\n" not in said


def test_before_the_first_checkpoint_it_says_so() -> None:
    error = explain_non_finite(epoch=0, step=0, values={}, learning_rate=1.0, checkpoint=None, sample_paths=["a.jpg"])
    assert "Last good checkpoint: none yet. Photographs: a.jpg. " in str(error)


# address space is limited for real; torch is loaded before, so that its own libraries fit
LIMITED = """
import resource, sys
import numpy, torch
from tokenlabel.engine.failures import explaining_memory
from tests.unit.engine.test_failures import MACHINE
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
with explaining_memory(MACHINE):
    {allocate}
"""


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("allocate", "amount"),
    [("torch.empty(2**31)", r" \(asked for 8\.00 GiB\)"), ("numpy.ones(2**31)", ""), ("bytearray(2**32)", "")],
    ids=["torch", "numpy", "Python"],
)
def test_memory_that_does_not_suffice_names_what_lowers_it(allocate: str, amount: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(allocate=allocate)], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert re.search(rf"TrainingError: out of memory on this machine{amount}\. What lowers it: ", last)
    for remedy in (
        "machine.micro_batch 128 -> 64",
        "grad_checkpointing false -> true",
        "precision float32 -> auto",
        "fsdp",
    ):
        assert remedy in last


class Killed(torch.utils.data.Dataset[int]):
    """A loader process that the kernel's out-of-memory killer ends, or whose shared memory is full."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_loader_process_that_was_killed_names_the_loaders_settings() -> None:
    with (
        pytest.raises(
            TrainingError,
            match=r"a loader process was killed.*workers 8 -> 4; machine\.prefetch_batches 4 -> 2.*/dev/shm",
        ),
        explaining_memory(MACHINE),
    ):
        next(iter(torch.utils.data.DataLoader(Killed(), num_workers=1)))


def test_a_gpus_out_of_memory_is_told_from_the_machines() -> None:
    # the very text of torch's allocator; no GPU is needed to see that it is understood
    text = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 31.73 GiB of which 1.02 GiB is free."
    with (
        pytest.raises(
            TrainingError, match=r"out of memory on the GPU \(asked for 2\.50 GiB\)\. What lowers it: a smaller model"
        ),
        explaining_memory(
            MACHINE | {"micro_batch": 1, "grad_checkpointing": True, "precision": "bfloat16", "sharding": "fsdp"}
        ),
    ):
        raise torch.OutOfMemoryError(text)


def test_a_training_for_segmentation_is_told_its_own_settings() -> None:
    with (
        pytest.raises(TrainingError) as raised,
        explaining_memory(MACHINE | {"micro_batch": 4, "segments": True}),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert "machine.segment_micro_batch 4 -> 2" in str(raised.value)
    assert "sharding" not in str(raised.value)
    with (
        pytest.raises(TrainingError, match=r"machine\.segment_mem_mb"),
        explaining_memory(MACHINE | {"segments": True}),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 384 KB, max allowed: 18.1 GB).",
    ],
    ids=["runtime", "cuBLAS", "cuDNN", "MPS"],
)
def test_what_a_gpus_libraries_could_not_allocate_is_memory_too(text: str) -> None:
    with (
        pytest.raises(
            TrainingError, match=r"^out of memory on the GPU\. What lowers it: machine\.micro_batch 128 -> 64"
        ),
        explaining_memory(MACHINE),
    ):
        raise RuntimeError(text)


def test_other_errors_of_a_gpu_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"), explaining_memory(MACHINE):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explaining_memory(MACHINE):
        torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_that_is_full_names_what_lowers_it() -> None:
    with (
        pytest.raises(TrainingError, match=r"out of memory on the GPU.*micro_batch 128 -> 64"),
        explaining_memory(MACHINE),
    ):
        torch.empty(2**46, device="cuda")
