"""Exports a checkpoint: a folder that timm and tokenlabel load, and ONNX checked against torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of an export."""
    parser.add_argument("checkpoint", type=Path, help="seed folder of a run, a weights file, or a published .pth.tar")
    parser.add_argument("out", type=Path, help="folder to write; only an earlier export is replaced")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, checked with onnxruntime")
    parser.add_argument("--image-px", type=int, default=None, help="side of the images (default: the checkpoint's)")
    parser.add_argument(
        "--architecture",
        default=None,
        help="of a published file, e.g. timm/deit_small_patch16_224 (default: recognised)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--ema", dest="use_ema", action="store_true", help="averaged weights where there are both (default)"
    )
    kind.add_argument("--plain", dest="use_ema", action="store_false", help="never the averaged weights")
    parser.set_defaults(use_ema=True)


def run(args: argparse.Namespace) -> int:
    """Writes the folder."""
    from .export import export_model
    from .trained import load_model

    loaded = load_model(args.checkpoint, architecture=args.architecture, image_px=args.image_px, use_ema=args.use_ema)
    if loaded.model.token_score_weight == 0:
        logger.warning(
            "the token head has no say in the class, so it may be untrained and its token logits mean nothing"
        )
    export_model(loaded, args.out, onnx=args.onnx)
    config = loaded.config
    logger.info("%s: %s, %d classes, %d px", args.out, config.architecture, config.num_classes, config.image_px)
    return 0
