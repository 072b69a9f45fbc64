"""Which device and precision a job runs with; `auto` asks the hardware instead of assuming it.

Jobs that run side by side on a node with several GPUs take one each: Slurm gives it to them, without Slurm the first one has it.
The processes of one training take the GPU of their number on the node.
"""

from __future__ import annotations

import contextlib
import os
import socket

import torch

from ..core.errors import ConfigError
from ..core.log import logger
from .processes import find_place

CLAIM = "tokenlabel-{user}-gpu{index}"  # what a job's socket is called, on its node
_claimed: list[tuple[int, socket.socket]] = []  # of this process: at most one GPU's index, and the socket that holds it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Resolves `auto` to CUDA, else Apple's MPS, else the CPU; of several GPUs takes one that no other job has.

    Raises:
        ConfigError: a device that this machine does not have, or more processes than it has GPUs.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if has["cuda"] else "mps" if has["mps"] else "cpu"
    if not has[name]:
        raise ConfigError(f"machine.device {name}: this machine has none. Set machine.device to auto or cpu.")
    if name == "cuda" and (place := find_place()).count > 1:
        if place.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {place.local_rank + 1} of this node has no GPU of its own; it has {torch.cuda.device_count()}. Set "
                "machine.processes (or torchrun's, srun's number of processes) to that."
            )
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
        return device
    if name == "cuda" and torch.cuda.device_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        device = torch.device("cuda", _claim_gpu(torch.cuda.device_count()))
        torch.cuda.set_device(device)  # streams and events belong to the current device
        return device
    return torch.device(name)


def _claim_gpu(count: int) -> int:
    """Index of a GPU that no other job of this user on this node holds.

    A job holds one by a socket in Linux's abstract namespace. It is no file, so it lies on no shared file system, and the
    kernel gives it back when the process ends, however it ends.
    """
    if _claimed:
        return _claimed[0][0]
    for index in range(count):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind("\0" + CLAIM.format(user=os.getuid(), index=index))
        except OSError:  # in use
            claim.close()
            continue
        _claimed.append((index, claim))
        return index
    logger.warning(
        "other jobs hold all %d GPUs; sharing the first. Run with snakemake --resources gpu=%d.", count, count
    )
    return 0


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolves `auto`: bfloat16 where the processor computes in it, else float32.

    On a CPU without AVX-512 bf16 instructions bfloat16 is emulated and several times slower than float32. A GPU without
    bfloat16 takes float16, whose losses the loop scales.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Autocast context of a precision; nothing for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def set_threads(threads: int) -> None:
    """Limits the processor threads of this process to what the scheduler granted."""
    torch.set_num_threads(threads)


def set_tf32(allowed: bool) -> None:
    """Lets float32 matrix products and convolutions run in TF32 (10 bits of mantissa, sums in float32) on GPUs that have it."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
