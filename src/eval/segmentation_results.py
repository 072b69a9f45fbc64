"""Reads the evaluation of one segmenter and refuses what is none of the run whose folder it lies in; called by tables and status.

Guarantees that every number is finite, that those which tables take are percentages, measured with the settings that the file's
name says of the training that lies beside it, and that no two seeds are one. Nothing is mended or left out: the first
defect is one line with file and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import read_json
from .results import REMEDY, check_finite, check_training


@dataclass(frozen=True)
class SegmentationResult:
    """What one evaluation measured; shares in percent, None where there was nothing to measure.

    Attributes:
        miou_ss, pixel_acc_ss: at a single scale.
        miou_ms, pixel_acc_ms: multi-scale.
        parameters_m: 10^6.
        images, skipped: scenes.
        seed: of the training.
    """

    miou_ss: float | None
    pixel_acc_ss: float | None
    miou_ms: float | None
    pixel_acc_ms: float | None
    parameters_m: float
    images: int
    skipped: int
    seed: int


def read_segmentation(path: Path, run: str) -> SegmentationResult:
    """Reads and checks an evaluation.

    Args:
        path: .../RUN/seedN/evaluation-DIGEST.json.
        run: name of the folder that it is said to be of, which ends in the digest of the run's spec.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, incomplete, of another evaluation, run, seed or training, or a number is none that can be.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected the evaluation of a segmenter. {REMEDY}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: found {type(found).__name__}, expected a JSON object. {REMEDY}")
    for name, expected in {
        "digest": path.stem.removeprefix("evaluation-"),
        "run": run.rsplit("-", 1)[-1],
        "seed": _seed_of(path),
    }.items():
        if found.get(name) != expected:
            raise DataError(
                f"{path}: {name} is {json.dumps(found.get(name))}, its place says {json.dumps(expected)}; it is of another "
                f"evaluation, or the folder was copied. {REMEDY}"
            )
    check_finite(path, found)
    check_training(path, found, run)
    return SegmentationResult(
        miou_ss=_share(path, found, "single", "miou"),
        pixel_acc_ss=_share(path, found, "single", "pixel_accuracy"),
        miou_ms=_share(path, found, "multi", "miou"),
        pixel_acc_ms=_share(path, found, "multi", "pixel_accuracy"),
        parameters_m=_number(path, found, "parameters_m", above_zero=True),
        images=int(_number(path, found, "images", above_zero=True)),
        skipped=int(_number(path, found, "skipped")),
        seed=int(found["seed"]),
    )


def check_same_scenes(results: Mapping[Path, SegmentationResult]) -> None:
    """Refuses seeds of one run that were measured on other numbers of scenes, or are networks of another size.

    Raises:
        DataError: names both.
    """
    first = next(iter(results), None)
    for path, result in results.items():
        for name in ("images", "parameters_m"):
            if first is not None and getattr(result, name) != getattr(results[first], name):
                here, there = getattr(result, name), getattr(results[first], name)
                raise DataError(
                    f"{path}: {name} is {here}, and {there} in {first}; seeds of one run are one "
                    "network measured on the same scenes. Delete the one that is out of date and run snakemake again."
                )


def _seed_of(path: Path) -> int:
    return int(path.parent.name.removeprefix("seed"))


def _share(path: Path, found: Mapping[str, Any], scale: str, name: str) -> float | None:
    section = found.get(scale)
    if not isinstance(section, dict) or name not in section:
        raise DataError(f"{path}: no {scale}.{name}; it is incomplete or of another kind. {REMEDY}")
    value = section[name]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise DataError(f"{path}: {scale}.{name} is {value!r}; expected between 0 and 100 percent. {REMEDY}")
    return float(value)


def _number(path: Path, found: Mapping[str, Any], name: str, *, above_zero: bool = False) -> float:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or (above_zero and not value):
        legal = "above 0" if above_zero else "0 or above"
        raise DataError(f"{path}: {name} is {value!r}; expected a number {legal}. {REMEDY}")
    return float(value)
