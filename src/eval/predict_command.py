"""Classifies a folder of photographs with a trained checkpoint: classes as CSV, dense maps as PNG and NPZ."""

from __future__ import annotations

import argparse
import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..core.errors import DataError
from ..core.log import logger

if TYPE_CHECKING:
    import torch

    from ..models import TokenModel

TOP = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of a prediction."""
    parser.add_argument("checkpoint", type=Path, help="model.safetensors of a run, or the seed folder that holds it")
    parser.add_argument("folder", type=Path, help="photographs; subfolders are searched too")
    parser.add_argument("--out", type=Path, default=None, help="CSV file to write (default: standard output)")
    parser.add_argument(
        "--maps", type=Path, default=None, help="folder for dense maps: a PNG and an NPZ per photograph"
    )
    parser.add_argument(
        "--crop", type=float, default=1.0, help="share of the shorter side that is looked at (default: 1)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Writes one CSV line per photograph; returns 1 when some could not be read."""
    if not args.folder.is_dir():
        raise DataError(f"{args.folder}: no such folder.")
    if not 0 < args.crop <= 1:
        raise DataError(f"--crop {args.crop}: must be above 0 and at most 1.")
    from ..data.images import UnreadableImageError, decode_image
    from ..data.readers import iter_image_files
    from ..engine.device import choose_device
    from ..models import load_model

    loaded = load_model(args.checkpoint)
    model, classes = loaded.model, loaded.classes
    device = choose_device(args.device)
    model.to(device)
    photographs = list(iter_image_files(args.folder))
    if not photographs:
        raise DataError(f"{args.folder}: no image files.")
    unreadable = 0
    with ExitStack() as stack:
        out: TextIO = stack.enter_context(open(args.out, "w", newline="", encoding="utf-8")) if args.out else sys.stdout
        writer = csv.writer(out)
        ranks = min(TOP, len(classes))
        writer.writerow(["path", *(f"{what}_{rank + 1}" for rank in range(ranks) for what in ("class", "probability"))])
        for photograph in photographs:
            name = photograph.relative_to(args.folder).as_posix()
            try:
                picture = decode_image(photograph.read_bytes())
            except UnreadableImageError as error:
                unreadable += 1
                logger.warning("%s: cannot be decoded (%s); left out", name, error)
                continue
            probabilities, token_logits = _predict(model, picture, args.crop, device)
            best = probabilities.topk(ranks)
            cells = [
                cell
                for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                for cell in (classes[index], f"{value:.4f}")
            ]
            writer.writerow([name, *cells])
            if args.maps is not None:
                _save_maps(args.maps / name, picture, token_logits, args.crop)
    return 1 if unreadable else 0


def _predict(
    model: TokenModel, picture: object, crop: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities (classes,) and token logits (rows, cols, classes) of one photograph."""
    import torch
    from PIL import Image

    from ..data.images import resize_and_centre_crop, to_tensor

    assert isinstance(picture, Image.Image)
    square = resize_and_centre_crop(picture, model.image_px, crop, "bicubic")
    images = to_tensor(square, model.mean, model.std)[None].to(device)
    with torch.inference_mode():
        output = model.forward_tokens(images)
        logits = output.class_logits + model.token_score_weight * output.token_logits.max(1).values
    rows, cols = output.grid
    return logits[0].float().softmax(-1).cpu(), output.token_logits[0].float().cpu().reshape(rows, cols, -1)


def _save_maps(stem: Path, picture: object, token_logits: torch.Tensor, crop: float) -> None:
    """Writes the best classes of every token beside a drawing of them over the part that was looked at."""
    import numpy as np
    from PIL import Image

    from .drawing import SUREST_OPACITY, choose_colours, class_shares, overlay

    assert isinstance(picture, Image.Image)
    stem.parent.mkdir(parents=True, exist_ok=True)
    best = token_logits.topk(min(TOP, token_logits.shape[-1]), dim=-1)
    np.savez_compressed(
        stem.with_name(stem.name + ".npz"),
        scores=best.values.numpy().astype(np.float16),
        classes=best.indices.numpy().astype(np.uint32),
    )
    side = min(picture.size) * crop
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    seen = picture.crop((round(left), round(top), round(left + side), round(top + side)))
    best_class, probability = best.indices[..., 0].numpy(), token_logits.softmax(-1).amax(-1).numpy()
    colours = choose_colours([class_shares(best_class, probability)])
    overlay(seen, best_class, probability * SUREST_OPACITY, colours).save(stem.with_name(stem.name + ".png"))
