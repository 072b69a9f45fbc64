"""The weights that a training or fine-tuning begins with: drawn from the seed, pretrained, published, or those of a run before.

Called by `job`. Averaged weights come first wherever both kinds lie: they are what the run before was measured with.
Positions are interpolated to the new grid (appendix B.1, "Larger input resolution"); heads of other classes start anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError
from ..core.log import logger
from ..core.seeds import derived_seed
from ..engine.run_model import model_of_spec
from ..models import TokenModel, load_checkpoint
from ..models.pretrained import load_pretrained
from ..models.weights import Checkpoint


def build_model(spec: dict[str, Any], start_folder: Path | None, seed: int, weights_root: Path = Path()) -> TokenModel:
    """The model of a spec in its starting weights.

    Args:
        spec: of stage train or finetune. `start` names the run before it; else `model.weights` a file, folder, package or
            hub, whose heads may have other classes; with neither the weights are drawn.
        start_folder: seed folder of the run before; None without one.
        seed: of the run, for what is drawn.
        weights_root: folder that file: and folder: are relative to.

    Raises:
        CheckpointError: weights that are missing, damaged, of another model or not of the stated digest.
    """
    torch.manual_seed(derived_seed("initialise", seed))
    model = model_of_spec(spec)
    if spec["start"] is None and start_folder is not None:
        raise CheckpointError(
            f"--start {start_folder}: the spec starts from no run (start: null), so its weights would not be used. Leave "
            "--start out, or give the spec the digest that the run's done.json has."
        )
    if spec["start"] is not None:
        if start_folder is None:
            raise CheckpointError("this run continues another one; give --start, the seed folder of that run.")
        load_checkpoint(model, start_folder, reset_heads=False)
    elif spec["model"].get("weights") is not None:
        source = spec["model"] | {"architecture": spec["model"]["architecture"].removeprefix("timm/")}
        pretrained = load_pretrained(source, weights_root, averaged=True)
        logger.info("starting from %s, sha256 %s", source["weights"], pretrained.sha256)
        load_checkpoint(model, Checkpoint(pretrained.origin, pretrained.state, averaged=pretrained.averaged))
    return model
