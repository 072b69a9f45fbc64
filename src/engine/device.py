"""Which device and precision a job runs with; `auto` asks the hardware instead of assuming it."""

from __future__ import annotations

import contextlib

import torch

from ..core.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Resolves `auto` to CUDA, else Apple's MPS, else the CPU.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if has["cuda"] else "mps" if has["mps"] else "cpu")
    if not has[name]:
        raise ConfigError(f"machine.device {name}: this machine has none. Set machine.device to auto or cpu.")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolves `auto`: bfloat16 where the processor computes in it, else float32.

    On a CPU without AVX-512 bf16 instructions bfloat16 is emulated and several times slower than float32.
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
