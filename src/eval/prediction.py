"""What a trained model says of photographs outside a data set: class probabilities and a class map each.

Photographs are decoded by threads ahead of the network. One that cannot be read is handed out with the reason, never
dropped. Called by `predict_command`; writes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.images import UnreadableImageError, centre_square, decode_image, resize_and_centre_crop, to_tensor
from ..engine.device import autocast
from ..models import TokenModel

SEEN_PX = (256, 448)  # least and largest side of the picture that is kept for drawing


@dataclass(frozen=True)
class Preprocessing:
    """How evaluation looks at a photograph.

    Attributes:
        crop: share of the shorter side that the central square spans, in (0, 1].
        interpolation: bilinear or bicubic.
    """

    crop: float
    interpolation: str


@dataclass(frozen=True)
class Prediction:
    """What the model says of one photograph.

    Attributes:
        path: of the photograph.
        probability: float32 (classes,), by the model's eval rule.
        token_probability: float32 (rows, cols, k), of the k best classes of each token, best first.
        token_classes: int64 of the same shape.
        image: float32 (3, image_px, image_px), what the network was given.
        seen: the part that was looked at, 256 to 448 px wide.
        box: that part in the upright photograph: x0, y0, x1, y1 in [0, 1].
    """

    path: Path
    probability: NDArray[np.float32]
    token_probability: NDArray[np.float32]
    token_classes: NDArray[np.int64]
    image: torch.Tensor
    seen: Image.Image
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Unreadable:
    """A photograph that could not be decoded, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class _View:
    """One decoded photograph."""

    tensor: torch.Tensor
    seen: Image.Image
    box: tuple[float, float, float, float]


def predict_photographs(
    model: TokenModel,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    top: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[Prediction | Unreadable]:
    """Runs a model over photographs; one result for each, in their order.

    Args:
        model: moved to the device and set to eval mode.
        paths: image files.
        preprocessing: the part of each that is looked at.
        top: classes kept for each token.
        batch_size: photographs that go through the network at once.
        workers: threads that decode.
        device: where the network runs.
        precision: of autocast.
    """
    model.eval().to(device)
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    read = partial(_read, image_px=model.image_px, preprocessing=preprocessing, mean=model.mean, std=model.std)
    waiting: deque[list[Future[_View | str]]] = deque()
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for index, batch in enumerate(batches):
            while len(waiting) < 2 and index + len(waiting) < len(batches):  # the next batch decodes during this one
                waiting.append([pool.submit(read, path) for path in batches[index + len(waiting)]])
            views = [future.result() for future in waiting.popleft()]
            yield from _classify(model, batch, views, min(top, model.num_classes), device, precision)


def _read(
    path: Path, image_px: int, preprocessing: Preprocessing, mean: tuple[float, ...], std: tuple[float, ...]
) -> _View | str:
    """A photograph as evaluation sees it, or the reason why not."""
    try:
        picture = decode_image(path.read_bytes())
    except (UnreadableImageError, OSError) as error:
        return str(error)
    square = resize_and_centre_crop(picture, image_px, preprocessing.crop, preprocessing.interpolation)
    edges = centre_square(picture.size, preprocessing.crop)
    shown = min(max(SEEN_PX[0], round(edges[2] - edges[0])), SEEN_PX[1])
    box = tuple(edge / size for edge, size in zip(edges, picture.size * 2, strict=True))
    return _View(to_tensor(square, mean, std), picture.resize((shown, shown), box=edges), box)  # type: ignore[arg-type]


@torch.inference_mode()
def _classify(
    model: TokenModel,
    paths: Sequence[Path],
    views: Sequence[_View | str],
    top: int,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[Prediction | Unreadable]:
    readable = [view for view in views if isinstance(view, _View)]
    answers: Iterator[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]] = iter(())
    if readable:
        with autocast(device, precision):
            output = model.forward_tokens(torch.stack([view.tensor for view in readable]).to(device))
        logits = model.score_classes(output.class_logits.float(), output.token_logits.float())
        best = output.token_logits.float().softmax(-1).topk(top)  # (batch, tokens, top)
        shape = (len(readable), *output.grid, top)
        answers = zip(
            logits.softmax(-1).cpu().numpy(),
            best.values.reshape(shape).cpu().numpy(),
            best.indices.reshape(shape).cpu().numpy(),
            strict=True,
        )
    for path, view in zip(paths, views, strict=True):
        if isinstance(view, str):
            yield Unreadable(path, view)
        else:
            yield Prediction(path, *next(answers), view.tensor, view.seen, view.box)
