"""Weights into a model: load_checkpoint, called by training (fine-tuning chains), `trained` and other people's code.

Guarantees that a model is either loaded in full or left as it was, and that what was changed to fit is said. Optimiser
state and resuming belong to the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import CheckpointError
from ..core.log import logger
from .tokens import TokenModel
from .transformer import initialise_linear, interpolate_position_embedding
from .weights import Checkpoint, listing, read_checkpoint


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Attributes:
        where, wrapper, averaged: which weights were taken; see `Checkpoint`.
        loaded: entries copied from the checkpoint.
        reset: heads initialised anew, because the checkpoint's have other classes or are missing.
        classes_found: classes of the checkpoint's heads; None where it has none.
        interpolated: entries resampled to the model's token grid.
    """

    where: str
    wrapper: str
    averaged: bool
    loaded: int
    reset: tuple[str, ...]
    classes_found: int | None
    interpolated: tuple[str, ...]


def load_checkpoint(
    model: TokenModel,
    source: Mapping[str, Any] | Checkpoint | str | Path,
    *,
    use_ema: bool = True,
    reset_heads: bool = True,
    without_heads: bool = False,
) -> LoadReport:
    """Loads weights strictly: every entry of the model from the checkpoint, and every entry of the checkpoint.

    The position embedding is interpolated where the grid differs. A leading "module." of names is removed, and timm's
    own names are understood for timm backbones. What was taken and what was changed is logged.

    Args:
        model: changed in place.
        source: a run's or an exported folder; a file (.safetensors; .pth, .pth.tar or .pt, read without executing
            anything in it); a state dict, plain or wrapped; or what `read_checkpoint` gave.
        use_ema: take the averaged weights of a folder or file that holds both.
        reset_heads: initialise heads anew that the checkpoint lacks or has for another number of classes.
        without_heads: leave the heads as they are, whatever the checkpoint has: a segmenter drops them.

    Raises:
        CheckpointError: the file is missing or damaged, holds values that are not finite, or does not fit; then the
            model is unchanged.
    """
    found = source if isinstance(source, Checkpoint) else read_checkpoint(source, use_ema=use_ema)
    state = model.adapt_names(found.state)
    expected = model.state_dict()
    classes_found = classes_of_heads(model, state)

    state, interpolated = fit_positions(model, state, expected)
    reset: tuple[str, ...] = ()
    if without_heads:
        state = _with_own_heads(state, expected, model.head_names)
    else:
        state, reset = _fit_heads(found.where, model, state, expected, reset_heads)
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)  # files written before PyTorch 0.4.1 lack these counters
    refuse_mismatch(found.where, state, expected)
    for head in reset:
        model.get_submodule(head).apply(initialise_linear)
    own = model.head_names if without_heads else reset
    taken = {name: value for name, value in state.items() if not _belongs(name, own)}
    model.load_state_dict({**model.state_dict(), **taken}, strict=True)
    report = LoadReport(found.where, found.wrapper, found.averaged, len(taken), reset, classes_found, interpolated)
    _log(report, model)
    return report


def classes_of_heads(model: TokenModel, state: Mapping[str, Tensor]) -> int | None:
    """Classes of the first head that a state dict in the model's names has."""
    sizes = (state[f"{head}.weight"].shape[0] for head in model.head_names if f"{head}.weight" in state)
    return next(sizes, None)


def _log(report: LoadReport, model: TokenModel) -> None:
    kind = "averaged weights (EMA)" if report.averaged else "weights"
    key = f" under {report.wrapper!r}" if report.wrapper else ""
    resampled = f"; {', '.join(report.interpolated)} interpolated to {model.grid}" if report.interpolated else ""
    logger.info("%s%s: %d entries of %s loaded%s", report.where, key, report.loaded, kind, resampled)
    if report.reset:
        reset = " and ".join(report.reset)
        if report.classes_found in (None, model.num_classes):
            logger.warning("%s: lacks %s, initialised anew for %d classes", report.where, reset, model.num_classes)
        else:
            logger.warning(
                "%s: heads of %d classes, the model has %d: %s initialised anew",
                report.where, report.classes_found, model.num_classes, reset,
            )  # fmt: skip


def fit_positions(
    model: TokenModel, state: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict in the model's names with positions on the model's grid, and the entries that were resampled."""
    name = model.position_name
    if name not in state or name not in expected or state[name].shape == expected[name].shape:
        return state, ()
    if state[name].ndim != 3 or expected[name].ndim != 3 or state[name].shape[2] != expected[name].shape[2]:
        return state, ()  # another width, not another grid: reported as a wrong shape
    prefix = expected[name].shape[1] - model.grid[0] * model.grid[1]
    return interpolate_position_embedding(state, model.grid, name=name, prefix_tokens=prefix), (name,)


def _fit_heads(
    where: str, model: TokenModel, state: dict[str, Tensor], expected: Mapping[str, Tensor], reset_heads: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Finds heads that do not fit; with `reset_heads` puts the model's own entries in their place."""
    wrong = []
    for head in model.head_names:
        names = [name for name in expected if _belongs(name, (head,))]
        if any(name not in state or _other_classes(state[name], expected[name]) for name in names):
            wrong.append(head)
    if not reset_heads:
        resized = [head for head in wrong if f"{head}.weight" in state]
        if resized:
            classes = {head: state[f"{head}.weight"].shape[0] for head in resized}
            raise CheckpointError(
                f"checkpoint {where}: classes of the heads are {classes}, the model has {model.num_classes}. "
                "Use reset_heads to start them anew."
            )
        return state, ()
    return _with_own_heads(state, expected, wrong), tuple(wrong)


def _with_own_heads(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], heads: Iterable[str]
) -> dict[str, Tensor]:
    """A state dict with the model's own entries in place of some heads."""
    heads = tuple(heads)
    kept = {name: value for name, value in state.items() if not _belongs(name, heads)}
    return kept | {name: value for name, value in expected.items() if _belongs(name, heads)}


def _other_classes(found: Tensor, expected: Tensor) -> bool:
    """Whether only the first axis, that of the classes, differs; another width is a mismatch of the whole model."""
    return found.shape[:1] != expected.shape[:1] and found.shape[1:] == expected.shape[1:]


def refuse_mismatch(where: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuses a state dict whose names or shapes are not those expected, with a CheckpointError that lists them."""
    kinds = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "wrong shape": [
            f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            for name, value in state.items()
            if name in expected and value.shape != expected[name].shape
        ],
    }
    found = [f"{kind}: {listing(names)}" for kind, names in kinds.items() if names]
    if found:
        raise CheckpointError(f"checkpoint {where} is of another model. {'; '.join(found)}")


def _belongs(name: str, heads: Iterable[str]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)
