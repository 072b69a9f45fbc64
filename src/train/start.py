"""The weights that a training or fine-tuning begins with: drawn from the seed, pretrained, published, or those of a run before.

Called by `job`. Averaged weights come first wherever both kinds lie: they are what the run before was measured with.
Positions are interpolated to the new grid (appendix B.1, "Larger input resolution"); heads of other classes start anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.seeds import derived_seed
from ..engine.run_model import model_of_spec
from ..engine.starting_weights import starting_weights
from ..models import TokenModel, load_checkpoint


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
    weights = starting_weights(
        spec, start_folder, weights_root, asks="this run continues another one", unused="weights"
    )
    if isinstance(weights, Path):
        load_checkpoint(model, weights, reset_heads=False)
    elif weights is not None:
        load_checkpoint(model, weights)
    return model
