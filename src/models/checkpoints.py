"""Reads and writes weights; called by training (fine-tuning chains), evaluation and prediction.

Guarantees that a model is either loaded in full or left as it was, that nothing in a file is executed, and that heads
are replaced only on request. Optimiser state and resuming belong to the engine.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, OutputError
from ..core.files import atomic_path
from .tokens import TokenModel
from .transformer import initialise_linear, interpolate_position_embedding

WRAPPERS = (
    "state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
)  # where training programs keep the weights; first found counts
LISTED = 10  # names of each kind that an error shows


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        loaded: entries copied from the checkpoint.
        reset: heads initialised anew, because the checkpoint's have other classes or are missing.
        interpolated: entries resampled to the model's token grid.
        wrapper: the key of the file under which the weights were found; "" where the file is a plain state dict.
    """

    loaded: int
    reset: tuple[str, ...]
    interpolated: tuple[str, ...]
    wrapper: str


def load_weights(
    model: TokenModel, state_or_path: Mapping[str, Any] | str | Path, *, reset_heads: bool = False
) -> LoadReport:
    """Loads weights strictly: every entry of the model from the checkpoint, and every entry of the checkpoint.

    The position embedding is interpolated where the grid differs. A leading "module." of names is removed, and timm's
    own names are understood for timm backbones.

    Args:
        model: changed in place.
        state_or_path: a state dict, one wrapped as {"state_dict" | "model" | "state_dict_ema": ...}, or a file of
            either (.pth, .pth.tar, .pt, read without executing anything in it; .safetensors).
        reset_heads: initialise heads anew that the checkpoint lacks or has for another number of classes.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit; then the model is unchanged.
    """
    if isinstance(state_or_path, Mapping):
        where, content = "state dict", state_or_path
    else:
        where, content = str(state_or_path), _read(Path(state_or_path))
    wrapper, state = _unwrap(where, content)
    state = model.adapt_names(state)
    expected = model.state_dict()

    state, interpolated = _fit_positions(model, state, expected)
    state, reset = _fit_heads(where, model, state, expected, reset_heads)
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)  # files written before PyTorch 0.4.1 lack these counters
    _refuse_mismatch(where, state, expected)
    for head in reset:
        model.get_submodule(head).apply(initialise_linear)
    taken = {name: value for name, value in state.items() if not _belongs(name, reset)}
    model.load_state_dict({**model.state_dict(), **taken}, strict=True)
    return LoadReport(len(taken), reset, interpolated, wrapper)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a file as a plain state dict, executing nothing in it.

    Args:
        path: .safetensors, or .pth, .pth.tar, .pt with a state dict, plain or under one of the usual keys.

    Raises:
        CheckpointError: the file is missing, damaged or holds no state dict.
    """
    return _unwrap(str(path), _read(Path(path)))[1]


def save_weights(
    model_or_state: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]
) -> None:
    """Writes weights as safetensors, atomically.

    Args:
        model_or_state: a model or a state dict.
        path: ends in .safetensors; replaced if it exists.
        metadata: what the reader must know, e.g. model, classes, spec digest; text only.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    # Entries of their own: safetensors refuses tensors that share memory or are not contiguous.
    own = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    with atomic_path(Path(path)) as temporary:
        try:
            save_file(own, temporary, dict(metadata))
        except SafetensorError as error:  # its own writer reports a full disk this way
            raise OutputError(f"{path}: the weights cannot be written ({error}).") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file, without reading its weights; empty where it has none.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read as safetensors: {error}") from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path)
            except SafetensorError as error:
                raise CheckpointError(f"checkpoint {path}: damaged: {error}. Fetch or write it again.") from error
        # timm's training script stores its argument namespace beside the weights; it holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path}: damaged, or holds more than weights (expected tensors in a dictionary): {reason}"
        ) from error


def _unwrap(where: str, content: Any) -> tuple[str, dict[str, Tensor]]:
    wrapper = ""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                wrapper, content = key, content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"checkpoint {where}: expected a state dict (name -> tensor), plain or under one of {', '.join(WRAPPERS)}"
        )
    return wrapper, {name.removeprefix("module."): value for name, value in content.items()}


def _fit_positions(
    model: TokenModel, state: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    name = model.position_name
    if name not in state or name not in expected or state[name].shape == expected[name].shape:
        return state, ()
    if state[name].ndim != 3 or expected[name].ndim != 3 or state[name].shape[2] != expected[name].shape[2]:
        return state, ()  # another width, not another grid: reported as a wrong shape
    prefix = expected[name].shape[1] - model.grid[0] * model.grid[1]
    return interpolate_position_embedding(state, model.grid, name=name, prefix_tokens=prefix), (name,)


def _fit_heads(
    where: str, model: TokenModel, state: dict[str, Tensor], expected: Mapping[str, Tensor], reset_heads: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Finds heads that do not fit; with `reset_heads` puts the model's own entries in their place."""
    wrong = []
    for head in model.head_names:
        names = [name for name in expected if _belongs(name, (head,))]
        if any(name not in state or _other_classes(state[name], expected[name]) for name in names):
            wrong.append(head)
    if not reset_heads:
        resized = [head for head in wrong if f"{head}.weight" in state]
        if resized:
            classes = {head: state[f"{head}.weight"].shape[0] for head in resized}
            raise CheckpointError(
                f"checkpoint {where}: classes of the heads are {classes}, the model has {model.num_classes}. "
                "Use reset_heads to start them anew."
            )
        return state, ()
    kept = {name: value for name, value in state.items() if not _belongs(name, wrong)}
    own = {name: value for name, value in expected.items() if _belongs(name, wrong)}
    return kept | own, tuple(wrong)


def _other_classes(found: Tensor, expected: Tensor) -> bool:
    """Whether only the first axis, that of the classes, differs; another width is a mismatch of the whole model."""
    return found.shape[:1] != expected.shape[:1] and found.shape[1:] == expected.shape[1:]


def _refuse_mismatch(where: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    kinds = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "wrong shape": [
            f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            for name, value in state.items()
            if name in expected and value.shape != expected[name].shape
        ],
    }
    found = [f"{kind}: {_listing(names)}" for kind, names in kinds.items() if names]
    if found:
        raise CheckpointError(f"checkpoint {where} is of another model. {'; '.join(found)}")


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _belongs(name: str, heads: Iterable[str]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)
