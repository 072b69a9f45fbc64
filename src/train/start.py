"""The weights that a training or fine-tuning begins with: drawn from the seed, pretrained, or those of a run before."""

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


def build_model(spec: dict[str, Any], start_folder: Path | None, seed: int, weights_root: Path = Path()) -> TokenModel:
    """The model of a spec in its starting weights: drawn from the seed, pretrained, or the weights of the run before.

    Raises:
        CheckpointError: the run before has no weights.
    """
    torch.manual_seed(derived_seed("initialise", seed))
    model = model_of_spec(spec)
    if spec["model"].get("weights") is not None and spec["start"] is None:
        source = spec["model"] | {"architecture": spec["model"]["architecture"].removeprefix("timm/")}
        pretrained = load_pretrained(source, weights_root)
        logger.info("starting from %s", pretrained.origin)
        load_checkpoint(model, pretrained.state)
    if spec["start"] is not None:
        if start_folder is None:
            raise CheckpointError("this run continues another one; give --start, the seed folder of that run.")
        load_checkpoint(model, start_folder, reset_heads=False)
    return model
