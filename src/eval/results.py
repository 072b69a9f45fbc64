"""Reads one evaluation and refuses what is no result of the run whose folder it lies in; called by tables, published too.

Guarantees that every number of it is finite and in its range, and that it was measured with the evaluation that its file name
says, of the training that lies beside it. Nothing is mended or left out: the first defect is one line with file and remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import DataError
from ..core.files import read_json

Evaluation = TypeVar("Evaluation")
NEEDED = ("digest", "top1", "top5", "val_images", "parameters_m", "gmacs", "weights_sha256")
NEEDED_OF_PUBLISHED = ("ece", "val_skipped", "weights")
PERCENT = ("top1", "top5", "real_top1", "ece", "class_top1", "token_agreement", "image_agreement")
AT_LEAST_ZERO = ("token_kl", "images_per_s", "peak_memory_mb")
ABOVE_ZERO = ("val_images", "parameters_m", "gmacs")
SAME_OF_ALL_SEEDS = ABOVE_ZERO
LARGEST = 1e300
REMEDY = "Delete it and run snakemake again."


def read_seeds(
    row: Mapping[str, Any], base: Path, complete: bool, read: Callable[[Path, str], Evaluation]
) -> dict[str, Evaluation]:
    """Seed -> evaluation of a row of a table's plan, of those that exist.

    Args:
        row: its seeds and run.
        base: the folder that its paths are relative to.
        complete: whether a missing one is an error.
        read: (path, run) -> the evaluation.

    Raises:
        DataError: one is missing, and `complete`.
    """
    found = {}
    for seed, path in row["seeds"].items():
        try:
            found[seed] = read(base / path, row["run"])
        except FileNotFoundError:
            if complete:
                raise DataError(f"{base / path}: this evaluation is missing. Run snakemake for the table.") from None
    return found


def read_result(path: Path, run: str) -> dict[str, Any]:
    """Reads and checks an evaluation.

    Args:
        path: .../RUN/seedN/evaluation-DIGEST.json, or .../ANNOTATOR/evaluation-DIGEST.json of an annotator alone.
        run: name of the folder that it is said to be of, which ends in the digest of the run's spec.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, incomplete, of another evaluation or run, or a number is none that can be.
    """
    result = _read_object(path)
    _check_present(path, result, NEEDED)
    _check_numbers(path, result)
    expected = path.stem.removeprefix("evaluation-")
    if result["digest"] != expected:
        raise DataError(
            f"{path}: measured with the evaluation settings {result['digest']!r}, its name says {expected!r}; it is of another "
            f"configuration. {REMEDY}"
        )
    check_training(path, result, run)
    return result


def read_published_result(path: Path) -> dict[str, Any]:
    """Reads and checks the evaluation of a published checkpoint.

    Args:
        path: .../NAME-DIGEST/evaluation.json.

    Raises:
        DataError: it is missing, damaged, incomplete, of another evaluation, or a number is none that can be.
    """
    try:
        result = _read_object(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing. Run snakemake results/published.csv, which measures it.") from None
    _check_present(path, result, (*NEEDED, *NEEDED_OF_PUBLISHED))
    _check_numbers(path, result)
    expected = path.parent.name.rsplit("-", 1)[-1]
    if result["digest"] != expected:
        raise DataError(
            f"{path}: measured with the settings {result['digest']!r}, its folder says {expected!r}; it is of another "
            f"configuration. {REMEDY}"
        )
    return result


def check_seeds_agree(results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuses seeds of one run that were measured on other photographs or are networks of another size: no mean is of both.

    Args:
        results: path -> evaluation, of all seeds of one run.

    Raises:
        DataError: names both.
    """
    first = next(iter(results), None)
    for path, result in results.items():
        for name in SAME_OF_ALL_SEEDS:
            if first is not None and not math.isclose(result[name], results[first][name], rel_tol=1e-6):
                raise DataError(
                    f"{path}: {name} is {result[name]}, and {results[first][name]} in {first}; seeds of one run are one network "
                    "measured on the same photographs. Delete the one that is out of date and run snakemake again."
                )


def check_seeds_differ(results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuses two seeds with one checkpoint: a folder was copied, and its accuracy would count twice.

    Args:
        results: path -> evaluation, of all seeds of one run.

    Raises:
        DataError: names both.
    """
    seen: dict[str, Path] = {}
    for path, result in results.items():
        first = seen.setdefault(result["weights_sha256"], path)
        if first != path:
            raise DataError(
                f"{path}: its checkpoint {result['weights_sha256'][:12]} is that of {first}, and two seeds never end in equal "
                f"weights; one folder is a copy of the other. Delete {path.parent} and run snakemake again."
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: this evaluation cannot be read ({error.strerror}).") from None
    except ValueError as error:  # of JSON, or bytes that are no text
        raise DataError(f"{path}: half-written, or no JSON ({error}). {REMEDY}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: an evaluation is a JSON object, found {type(found).__name__}. {REMEDY}")
    return found


def _check_present(path: Path, result: Mapping[str, Any], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in result]
    if missing:
        raise DataError(
            f"{path}: this evaluation has no {', '.join(missing)}; it is incomplete or of another kind. {REMEDY}"
        )


def _check_numbers(path: Path, result: Mapping[str, Any]) -> None:
    check_finite(path, result)
    for name in ("digest", "weights_sha256"):
        if not isinstance(result.get(name, ""), str):
            raise DataError(f"{path}: {name} is {result[name]!r}; expected hexadecimal digits. {REMEDY}")
    test_sets = result.get("test_sets", {})
    if not isinstance(test_sets, dict) or not all(
        isinstance(found, dict) and "top1" in found for found in test_sets.values()
    ):
        raise DataError(f"{path}: test_sets must give each test set its top1. {REMEDY}")
    scales = [(name, result[name], 0.0, 100.0) for name in PERCENT if name in result]
    scales += [
        (f"test_sets.{name}.{key}", found[key], 0.0, 100.0)
        for name, found in test_sets.items()
        for key in ("top1", "top5")
        if key in found
    ]
    scales += [(name, result[name], 0.0, math.inf) for name in AT_LEAST_ZERO if name in result]
    scales += [(name, result[name], math.nextafter(0.0, 1.0), math.inf) for name in ABOVE_ZERO if name in result]
    for name, value, smallest, largest in scales:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"{path}: {name} is {value!r}; expected a number. {REMEDY}")
        if not smallest <= value <= largest:
            legal = "between 0 and 100 percent" if largest == 100 else "0 or above" if smallest == 0 else "above 0"
            raise DataError(f"{path}: {name} is {value:g}; expected {legal}. {REMEDY}")


def check_finite(path: Path, result: Mapping[str, Any]) -> None:
    """Looks at every number, so that one that nobody tabulates yet cannot hide a broken measurement.

    Raises:
        DataError: names the first that is no number.
    """
    for name, value in numbers_of(result):
        if not math.isfinite(value):
            raise DataError(f"{path}: {name} is {value}, which is no measurement. {REMEDY}")


def numbers_of(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yields the dotted name and value of every number of a document."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers_of(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from numbers_of(inner, f"{name}[{position}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, math.inf if abs(value) > LARGEST else float(value)  # an integer of JSON has no end


def check_training(path: Path, result: Mapping[str, Any], run: str) -> None:
    """Compares an evaluation with the marker of the training beside it, where there is one.

    Raises:
        DataError: the marker or the evaluation is of another training.
    """
    marker = path.parent / "done.json"
    if not marker.exists():  # an annotator alone, or results without their runs
        return
    done = _read_object(marker)
    digest = run.rsplit("-", 1)[-1]
    if done.get("digest") != digest:
        raise DataError(
            f"{marker}: of the run {done.get('digest')!r}, but its folder belongs to {digest!r}; the folder was copied or renamed. "
            f"Delete {path.parent} and run snakemake again."
        )
    if path.parent.name != f"seed{done.get('seed')}":
        raise DataError(
            f"{marker}: of seed {done.get('seed')}, but it lies in {path.parent.name}; the folder was copied. "
            f"Delete {path.parent} and run snakemake again."
        )
    # the marker's digest is of the plain weights, so that an evaluation of the averaged ones is known by the training's seconds
    pairs = [("train_seconds", "seconds")]
    if result.get("weights") == "model.safetensors":
        pairs.append(("weights_sha256", "weights_sha256"))
    for name, key in pairs:
        if name in result and key in done and result[name] != done[key]:
            raise DataError(
                f"{path}: {name} {result[name]} is not that of the training beside it ({done[key]} in {marker.name}); it was "
                f"measured of another one. {REMEDY}"
            )
