"""Files of weights, read without executing anything in them and written atomically; models know nothing of this.

Called wherever weights come from or go to. Guarantees that what `read_checkpoint` gives is finite.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, OutputError
from ..core.files import atomic_path, parse_json

PLAIN, AVERAGED = ("state_dict", "model"), ("state_dict_ema", "model_ema")  # where training programs keep weights
HUB_FILE = "pytorch_model.bin"  # of older folders of timm's hub
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile
WEIGHTS_FILE, AVERAGED_FILE = "model.safetensors", "model_ema.safetensors"  # of a run's folder
SMALL_BYTES = 2**24  # that a tensor may promise without having them
LISTED = 10  # names of each kind that an error shows


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they were found.

    Attributes:
        where: the file, or words for a state dict that was given.
        state: name -> tensor, floating-point values at least in single precision.
        wrapper: the key of the file under which they were; "" where the file is a plain state dict.
        averaged: whether file or key say that they are a moving average (EMA).
    """

    where: str
    state: dict[str, Tensor]
    wrapper: str = ""
    averaged: bool = False


def read_checkpoint(source: Mapping[str, Any] | str | Path, *, use_ema: bool = True) -> Checkpoint:
    """Reads weights, executing nothing in the file.

    Args:
        source: as for `load_checkpoint`.
        use_ema: take the averaged weights of a folder or file that holds both; False never takes them.

    Raises:
        CheckpointError: missing, damaged, no weights of the wanted kind, or values that are not finite.
    """
    if isinstance(source, Mapping):
        where, content, averaged = "state dict", source, False
    else:
        path = checkpoint_file(source, use_ema=use_ema)
        where, content, averaged = str(path), _read(path), path.name == AVERAGED_FILE
    wrapper, state = _unwrap(where, content, (*AVERAGED, *PLAIN) if use_ema else PLAIN)
    state = {name: _at_least_single(value) for name, value in state.items()}
    _refuse_not_finite(where, state)
    return Checkpoint(where, state, wrapper, averaged or wrapper in AVERAGED)


def checkpoint_file(path: str | Path, *, use_ema: bool = True) -> Path:
    """The weights file of a folder of ours, averaged ones where wanted and kept; a file is itself.

    Raises:
        CheckpointError: the folder has none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (AVERAGED_FILE, WEIGHTS_FILE, HUB_FILE) if use_ema else (WEIGHTS_FILE, HUB_FILE):
        if (path / name).is_file():
            return path / name
    if seeds := sorted(found.parent.name for found in path.glob(f"seed*/{WEIGHTS_FILE}")):
        raise CheckpointError(f"{path}: a run with a folder for each seed; give one of them, e.g. {path / seeds[0]}")
    raise CheckpointError(
        f"{path / WEIGHTS_FILE}: no such file; the folder holds no weights. Where it is a run's, delete its done.json and "
        "run snakemake."
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of a file as they are, executing nothing in it; plain ones before averaged ones.

    Args:
        path: .safetensors, or .pth, .pth.tar, .pt with a state dict, plain or under one of the usual keys.

    Raises:
        CheckpointError: the file is missing, damaged or holds no state dict.
    """
    return _unwrap(str(path), _read(Path(path)), (*PLAIN, *AVERAGED))[1]


def save_weights(
    model_or_state: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]
) -> None:
    """Writes weights as safetensors, atomically; the same bytes for the same weights and metadata.

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
            temporary.touch()
            mode = temporary.stat().st_mode  # by the umask; safetensors makes files that only their owner reads
            save_file(own, temporary, dict(metadata))
            _sort_metadata(temporary)
            temporary.chmod(mode)
        except SafetensorError as error:  # its own writer reports a full disk this way
            raise OutputError(f"{path}: the weights cannot be written ({error}).") from error


def _sort_metadata(path: Path) -> None:
    """Puts a file's metadata in order: safetensors writes them in a random one, and equal weights shall have equal digests."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(ordered) <= size, f"{path}: header of {len(ordered)} bytes for {size}"
        file.seek(8)
        file.write(ordered.ljust(size))


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


def read_json_metadata(path: str | Path, key: str) -> Any:
    """A JSON value of the metadata; None where it has none of that name.

    Raises:
        CheckpointError: the file is missing or damaged, or the value is no JSON.
    """
    try:
        return parse_json(read_metadata(path).get(key, "null"))
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint {path}: {key} in its metadata is no JSON ({error}). Fetch or write it again."
        ) from None


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
        _refuse_inflating(path)
        # timm's training script stores its argument namespace beside the weights; it holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is for who made the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch's unpickler raises almost any type on damaged or hostile bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own words ask for weights_only=False
            reason = "no file of torch.save, or one with other objects than tensors and plain values"
        raise CheckpointError(
            f"checkpoint {path}: damaged, or holds more than weights (expected tensors in a dictionary): {reason}"
        ) from error


def _refuse_inflating(path: Path) -> None:
    """Refuses a zip whose members are larger than the file; torch compresses nothing, and would allocate what it is told."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            promised = sum(member.file_size for member in archive.infolist())
        if promised > path.stat().st_size:
            raise CheckpointError(
                f"checkpoint {path}: promises {promised} bytes, more than the file has. Take it from where you trust it."
            )


def _unwrap(where: str, content: Any, wrappers: tuple[str, ...]) -> tuple[str, dict[str, Tensor]]:
    wrapper = ""
    if isinstance(content, Mapping):
        for key in wrappers:
            if isinstance(content.get(key), Mapping):
                wrapper, content = key, content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(map(_is_entry, content, content.values())):
        hint = ""
        if isinstance(content, Mapping) and any(key in content for key in AVERAGED) and not wrapper:
            hint = "; it holds averaged weights only, which use_ema takes"
        raise CheckpointError(
            f"checkpoint {where}: expected a state dict (name -> tensor), plain or under {', '.join(wrappers)}{hint}"
        )
    return wrapper, {_PREFIXES.sub("", name): value for name, value in content.items()}


def _is_entry(name: object, value: object) -> bool:
    """Whether it is a name with numbers of its own; a tensor with strides of 0 may promise more than memory holds."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.numel() * value.itemsize <= max(value.untyped_storage().nbytes(), SMALL_BYTES)


def _at_least_single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() and value.itemsize < 4 else value


def _refuse_not_finite(where: str, state: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"checkpoint {where}: NaN or infinite values in {listing(bad)}. The training diverged or the file is damaged; "
            "take another checkpoint."
        )


def listing(names: list[str]) -> str:
    """At most ten names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
