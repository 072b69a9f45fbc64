"""The segmenter that a training begins with: a backbone of a run before, with published weights or drawn, and new heads.

Called by `job`. The heads' weights are drawn from the seed alone, so that rows of a table which differ in the backbone's weights
begin with equal heads. Positions are interpolated to the crop's grid once and learnt there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError
from ..core.files import read_json
from ..core.seeds import derived_seed
from ..engine.starting_weights import starting_weights
from ..models import TokenModel, create_model, load_checkpoint
from ..models.segmentation import SegmentationModel, create_segmenter


def build_segmenter(
    spec: dict[str, Any], start_folder: Path | None, seed: int, weights_root: Path = Path()
) -> SegmentationModel:
    """The segmenter of a spec in its starting weights, in training mode.

    Args:
        spec: of stage segment. `start` names the backbone's run; else `model.weights` a file, folder, package or hub; with
            neither the backbone's weights are drawn.
        start_folder: seed folder of the backbone's run; None without one.
        seed: of the run, for what is drawn.
        weights_root: folder that file: and folder: are relative to.

    Raises:
        CheckpointError: weights that are missing, damaged, of another model or run, or not of the stated digest; a folder where
            the spec starts from none.
        ConfigError: head, backbone and crop do not fit together.
    """
    torch.manual_seed(derived_seed("initialise", seed))
    backbone = _backbone(spec, start_folder, weights_root)
    torch.manual_seed(derived_seed("initialise heads", seed))
    return create_segmenter(
        backbone, spec["head"], spec["dataset"]["num_classes"], crop_px=spec["recipe"]["crop_px"]
    )  # fmt: skip


def _backbone(spec: dict[str, Any], start_folder: Path | None, weights_root: Path) -> TokenModel:
    source = spec["model"]
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in source["settings"].items()}
    backbone = create_model(
        source["architecture"],
        num_classes=1,  # the classifier is dropped
        image_px=spec["image_px"],
        stochastic_depth=source["stochastic_depth"],
        **settings,
    )
    weights = starting_weights(
        spec, start_folder, weights_root, asks="this run starts from a backbone's run", unused="backbone"
    )
    if isinstance(weights, Path):
        _check_run(weights, spec["start"])
    if weights is not None:
        load_checkpoint(backbone, weights, without_heads=True)
    return backbone


def _check_run(folder: Path, digest: str) -> None:
    """Refuses another run's folder than the spec names; a folder without a marker is taken as it is."""
    try:
        found = read_json(folder / "done.json")["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found != digest:
        raise CheckpointError(
            f"{folder}: of run {found}, the spec starts from run {digest}. Give --start, the seed folder of that one."
        )
