"""What `predict` and `visualise` ask of a checkpoint, and how they open it: the model, and the part of a photograph it sees."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DataError
from ..core.log import logger

if TYPE_CHECKING:
    from ..models.trained import LoadedModel
    from .prediction import Preprocessing


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the checkpoint and how it is used."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a run's seed folder, an exported folder, or a weights file (.safetensors, .pth.tar)",
    )
    parser.add_argument(
        "--crop",
        type=float,
        default=None,
        help="share of the shorter side that is looked at (default: the checkpoint's)",
    )
    parser.add_argument("--architecture", default=None, help="of a published weights file: lvvit_s, timm/<name>, ...")
    parser.add_argument(
        "--image-px", type=int, default=None, help="side of the network's input (default: the checkpoint's)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")


def check_arguments(args: argparse.Namespace, counts: tuple[str, ...]) -> None:
    """Refuses a crop and counts outside their range with a DataError, before anything is loaded."""
    for name in counts:
        if getattr(args, name) < 1:
            raise DataError(f"--{name} {getattr(args, name)}: must be at least 1.")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise DataError(f"--crop {args.crop}: must be above 0 and at most 1.")


def open_checkpoint(args: argparse.Namespace) -> tuple[LoadedModel, Preprocessing]:
    """The model that the arguments name, and how it looks at a photograph.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or unknown.
    """
    from ..models import load_model
    from .prediction import Preprocessing

    loaded = load_model(args.checkpoint, architecture=args.architecture, image_px=args.image_px)
    return loaded, Preprocessing(args.crop or loaded.config.crop, loaded.config.interpolation)


def warn_of_untrained_head(loaded: LoadedModel) -> bool:
    """Whether the token head may be untrained: after a training without token loss, or from a plain classifier's weights."""
    if loaded.model.token_score_weight != 0:
        return False
    logger.warning("the token head has no say in the class, so it may be untrained and its class maps mean nothing")
    return True
