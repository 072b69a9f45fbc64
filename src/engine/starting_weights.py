"""Where a run's starting weights lie: in the folder of a run before, or published; the same for stage 2 and segmentation.

Called by train.start and segment.start, which load them each in their own way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.log import logger
from ..models.pretrained import load_pretrained
from ..models.weights import Checkpoint


def starting_weights(
    spec: dict[str, Any], start_folder: Path | None, weights_root: Path, *, asks: str, unused: str
) -> Path | Checkpoint | None:
    """The weights that a spec starts from.

    Args:
        spec: `start` names the run before; else `model.weights` a file, folder, package or hub.
        start_folder: seed folder of the run before; None without one.
        weights_root: folder that file: and folder: are relative to.
        asks: for the error, what a spec with `start` does that needs the folder.
        unused: for the error, what of the folder a spec without would not use.

    Returns:
        The folder, a published checkpoint, averaged weights first, or None where the weights are drawn.

    Raises:
        CheckpointError: a folder where the spec starts from none or none where it does; published weights that are missing,
            damaged or not of the stated digest.
    """
    source = spec["model"]
    if spec["start"] is None and start_folder is not None:
        raise CheckpointError(
            f"--start {start_folder}: the spec starts from no run (start: null), so its {unused} would not be used. Leave "
            "--start out, or give the spec the digest that the run's done.json has."
        )
    if spec["start"] is not None:
        if start_folder is None:
            raise CheckpointError(f"{asks}; give --start, the seed folder of that run.")
        return start_folder
    if source.get("weights") is None:
        return None
    published = source | {"architecture": source["architecture"].removeprefix("timm/")}
    pretrained = load_pretrained(published, weights_root, averaged=True)
    logger.info("starting from %s, sha256 %s", source["weights"], pretrained.sha256)
    return Checkpoint(pretrained.origin, pretrained.state, averaged=pretrained.averaged)
