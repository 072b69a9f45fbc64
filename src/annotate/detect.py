"""Finds out which way round foreign label maps lie and which part of the photograph they cover.

Tries each hypothesis, (rows down or transposed) x (whole photograph or centre crop), against a local annotator run on the
photographs themselves, and refuses to answer where the answer is not clear. Called by `tokenlabel annotate import --detect`.

Measured is, per photograph and hypothesis, the mean over cells of the log-probability that the local annotator gives to the
stored distribution. The rule: the hypothesis with the highest mean must beat each other one on so many photographs that a sign
test has p < 0.001, and the maps must fit their own photographs better than each other's by the same test. Photographs that are
square say nothing about the view; where all are, either view is right and `squash` is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import LabelError
from ..data.images import resize, resize_and_centre_crop, to_tensor
from .dense import Annotator

HYPOTHESES = tuple((axes, view) for axes in ("right", "transposed") for view in ("squash", "centre_crop"))
SIGNIFICANCE = 1e-3
SQUARE = 0.02  # sides that differ by less are taken for equal: the views then differ by less than half a cell of 18

Map = tuple[NDArray[np.float16], NDArray[Any]]


@dataclass(frozen=True)
class Evidence:
    """How well maps fit photographs under each of the hypotheses.

    Attributes:
        log_probability: float64 (photographs, hypotheses), of the photograph's own map.
        agreement: float64 (photographs, hypotheses), share of cells with the same best class.
        of_another: float64 (photographs, hypotheses), log-probability of another photograph's map.
        square: bool (photographs,).
    """

    log_probability: NDArray[np.float64]
    agreement: NDArray[np.float64]
    of_another: NDArray[np.float64]
    square: NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """The hypothesis that holds, and the table that shows it."""

    axes: str
    view: str
    table: tuple[str, ...]


def gather_evidence(
    annotator: Annotator, photographs: Sequence[Image.Image], maps: Sequence[Map], image_px: int, device: torch.device
) -> Evidence:
    """Runs the local annotator on each photograph in both views and compares.

    Args:
        annotator: on `device`, in eval mode.
        photographs: upright pictures.
        maps: scores and classes of each photograph as its file has them: (axis 2, axis 3, k).
        image_px: side of the square that the annotator sees.
        device: to run on.
    """
    count = len(photographs)
    given, agreement, of_another = (np.zeros((count, len(HYPOTHESES))) for _ in range(3))
    for place, picture in enumerate(photographs):
        seen = {view: _log_probabilities(annotator, picture, view, image_px, device) for _, view in HYPOTHESES[:2]}
        other = maps[(place + max(1, count // 2)) % count]
        for column, (axes, view) in enumerate(HYPOTHESES):
            given[place, column], agreement[place, column] = _compare(maps[place], axes, seen[view])
            of_another[place, column], _ = _compare(other, axes, seen[view])
    square = np.array([abs(picture.width / picture.height - 1) < SQUARE for picture in photographs], dtype=bool)
    return Evidence(given, agreement, of_another, square)


@torch.inference_mode()
def _log_probabilities(
    annotator: Annotator, picture: Image.Image, view: str, image_px: int, device: torch.device
) -> torch.Tensor:
    """Logits of every cell as log-probabilities, (classes, rows, cols)."""
    interpolation: Any = annotator.preprocessing.interpolation
    if view == "squash":
        square = resize(picture, image_px, image_px, interpolation)
    else:
        square = resize_and_centre_crop(picture, image_px, 1.0, interpolation)
    pixels = to_tensor(square, annotator.preprocessing.mean, annotator.preprocessing.std)
    logits: torch.Tensor = annotator(pixels[None].to(device))[0].float()
    return logits.log_softmax(-1).permute(2, 0, 1)


def _compare(stored: Map, axes: str, seen: torch.Tensor) -> tuple[float, float]:
    """Mean log-probability of a stored map and share of cells with the same best class."""
    scores, classes = (torch.from_numpy(array.astype(np.float32)) for array in stored)
    if axes == "transposed":
        scores, classes = scores.transpose(0, 1), classes.transpose(0, 1)
    if seen.shape[1:] != scores.shape[:2]:
        seen = torch.nn.functional.interpolate(seen[None], tuple(scores.shape[:2]), mode="bilinear")[0]
    index = classes.to(device=seen.device, dtype=torch.long).permute(2, 0, 1)
    weights = scores.to(seen.device).softmax(-1).permute(2, 0, 1)
    given = (weights * seen.gather(0, index)).sum(0).mean()
    return float(given), float((seen.argmax(0) == index[0]).float().mean())


def decide(evidence: Evidence) -> Answer:
    """Takes the hypothesis that clearly beats the others.

    Raises:
        LabelError: none does; the message has the reason, and says what to do.
    """
    means = evidence.log_probability.mean(0)
    best = int(means.argmax())
    axes, view = HYPOTHESES[best]
    own = evidence.log_probability[:, best]
    all_square = bool(evidence.square.all())
    lines = [f"  {'axes':<10}  {'view':<11}  log-probability  top-1 agreement  beaten by the best on"]
    doubts = []
    for column, (other_axes, other_view) in enumerate(HYPOTHESES):
        informative = np.full(len(own), True) if other_axes != axes else ~evidence.square
        wins, of = int((own > evidence.log_probability[:, column])[informative].sum()), int(informative.sum())
        if column == best:
            verdict = "(the best)"
        elif other_axes == axes and all_square:
            verdict = "all photographs are square: the same"
        else:
            verdict = f"{wins} of {of} photographs (p {_sign_test(wins, of):.1g})"
            if _sign_test(wins, of) >= SIGNIFICANCE:
                doubts.append(f"{other_axes} {other_view} (beaten on {wins} of {of} photographs)")
        agreement = evidence.agreement[:, column].mean()
        lines.append(f"  {other_axes:<10}  {other_view:<11}  {means[column]:>15.3f}  {agreement:>15.3f}  {verdict}")
    fit = int((own > evidence.of_another[:, best]).sum())
    lines.append(f"  the maps fit their own photograph better than another one's on {fit} of {len(own)}")
    table = "\n".join(lines)
    if _sign_test(fit, len(own)) >= SIGNIFICANCE:
        raise UnclearError(
            f"--detect: the maps fit their own photographs no better than other ones ({fit} of {len(own)}): labels of another "
            "data set, another order of classes, or an annotator too weak to tell. Give a stronger annotator, or --axes and "
            "--view where you know them.",
            table,
        )
    if doubts:
        raise UnclearError(
            f"--detect: unclear. {axes} {view} fits best, but not clearly better than {', '.join(doubts)}; p < "
            f"{SIGNIFICANCE:g} of a sign test is asked for. Raise --sample, give a stronger annotator or, where you know them, "
            "--axes and --view.",
            table,
        )
    return Answer(axes, "squash" if all_square else view, tuple(lines))


class UnclearError(LabelError):
    """No hypothesis is clearly better; `table` shows the scores."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


def _sign_test(wins: int, of: int) -> float:
    """Probability of so many wins or more by chance."""
    return float(sum(math.comb(of, number) for number in range(wins, of + 1)) / 2**of)
