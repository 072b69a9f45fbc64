"""From an experiment's rows to models and recipes: what a row may say, what of a recipe counts, and what the caps leave of it.

Called by the plan, and by `tokenlabel train --explain`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from . import paper
from .config import Caps, Config, Experiment, Model, ModelSettings, Recipe, Row, describe_problems
from .errors import ConfigError, unknown_name
from .paper import PaperRow
from .recipes import with_batch

Section = TypeVar("Section", bound=pydantic.BaseModel)

ROW_KEYS = (
    "model", "annotator", "recipe", "finetune_recipe", "finetune_px", "image_px", "stochastic_depth", "start", "start_sha256",
)  # fmt: skip


class NotApplicable(Exception):  # noqa: N818 - a signal between two functions here, never seen by a user
    """An experiment that this study's selection leaves without rows."""


def expanded_rows(config: Config, name: str, experiment: Experiment) -> list[Row]:
    """The rows of an experiment: those written out, then those of its grid."""
    grid: dict[str, list[Any]] = {}
    for key, values in sorted(experiment.grid.items()):  # an overlay's merge may reorder keys; rows keep their names
        if values == "selected":
            if key != "annotator":
                raise ConfigError(
                    f"configuration key experiments.{name}.grid.{key}: 'selected' is legal for annotator only"
                )
            grid[key] = list(config.select.annotators)
        else:
            grid[key] = list(values)
    rows = list(experiment.rows)
    if grid:
        for combination in itertools.product(*grid.values()):
            chosen = dict(zip(grid, combination, strict=True))
            rows.append(Row(name=_grid_name(chosen), set=chosen))
    doubled = {row.name for row in rows if sum(other.name == row.name for other in rows) > 1}
    if doubled:
        raise ConfigError(f"configuration key experiments.{name}: row name {sorted(doubled)[0]!r} stands twice")
    if not rows:
        raise NotApplicable(f"configuration key experiments.{name}: no row is left to run")
    return rows


def _grid_name(chosen: Mapping[str, Any]) -> str:
    parts = [
        str(value) if isinstance(value, str) else f"{key.rsplit('.', 1)[-1]}_{value}" for key, value in chosen.items()
    ]
    return re.sub(r"[^A-Za-z0-9]+", "_", "_".join(parts)).strip("_")


def paper_of_row(experiment: Experiment, row: Row, where: str) -> PaperRow:
    """What the paper says of a row: by its own reference or number, else by its name in the experiment's.

    Raises:
        ConfigError: a reference to a table or row that the paper does not have.
    """
    if row.paper_row is not None:
        return paper.find_row(row.paper_row, f"configuration key {where}.rows.{row.name}.paper_row")
    table = experiment.paper_rows
    if table is not None:
        paper.check_table(table, f"configuration key {where}.paper_rows")
        if row.paper_top1 is None and row.name in paper.row_names(table):
            return paper.find_row(f"{table}/{row.name}", where)
    top1 = row.paper_top1 if row.paper_top1 is not None else experiment.paper_top1.get(row.name)
    return PaperRow(top1=top1, source=None if top1 is None else "configuration")


def other_rows(config: Config, experiment: Experiment, ours: Sequence[PaperRow], where: str) -> tuple[PaperRow, ...]:
    """The rows of the paper's table `paper_only` that no row of the experiment stands for: methods that nothing here trains.

    None for a study of other photographs, whose overlay may have inherited the key.

    Raises:
        ConfigError: the paper has no such table.
    """
    table = experiment.paper_only
    if table is None:
        return ()
    key = f"configuration key {where}.paper_only"
    paper.check_table(table, key)
    if config.dataset.name != paper.DATASET:
        return ()
    here = {row.reference for row in ours}
    rows = (paper.find_row(f"{table}/{name}", key) for name in paper.row_names(table))
    return tuple(row for row in rows if row.reference not in here)


def check_row_keys(choice: Mapping[str, Any], where: str, more: Sequence[str] = ()) -> None:
    """Refuses a key that no row has, nor is one of `more`, with a ConfigError."""
    legal = (
        *more,
        *ROW_KEYS,
        *(f"train.{name}" for name in Recipe.model_fields),
        *(f"finetune.{name}" for name in Recipe.model_fields),
        *(f"architecture.{name}" for name in ModelSettings.model_fields),
    )
    for key in choice:
        if key not in legal:
            raise unknown_name("setting", key, legal, f"configuration key {where}.set")
    if choice.get("start_sha256") is not None and choice.get("start") is None:
        raise ConfigError(
            f"configuration key {where}.set.start_sha256: without start there is no file to check. Give start too."
        )
    chain = choice["finetune_px"]
    if not isinstance(chain, (list, tuple)) or not all(type(px) is int for px in chain):
        raise ConfigError(f"configuration key {where}.finetune_px: {chain!r} is not legal: a list of pixels, as [384]")


def known_name(kind: str, name: str, catalogue: Mapping[str, Any], where: str) -> str:
    """The name, which must be in the catalogue (ConfigError)."""
    if not isinstance(name, str) or name not in catalogue:
        raise unknown_name(kind, str(name), catalogue, f"configuration key {where}")
    return name


def revalidated(section: Section, update: dict[str, Any], where: str) -> Section:
    """Validates a section with some fields replaced; names the row's key in the error."""
    try:
        return type(section).model_validate({**section.model_dump(), **update})
    except pydantic.ValidationError as error:
        raise ConfigError(describe_problems(error, where)) from None


def with_overrides(recipe: Recipe, choice: Mapping[str, Any], prefix: str, where: str) -> Recipe:
    """The recipe with what a row says of it: `train.KEY` or `finetune.KEY`."""
    update = {key.removeprefix(f"{prefix}."): value for key, value in choice.items() if key.startswith(f"{prefix}.")}
    return revalidated(recipe, update, f"{where}.set.{prefix}")


def with_settings(model: Model, choice: Mapping[str, Any], where: str) -> Model:
    """The model with what a row says of it."""
    update = {
        key.removeprefix("architecture."): value for key, value in choice.items() if key.startswith("architecture.")
    }
    settings = revalidated(model.settings, update, f"{where}.set.architecture")
    changes: dict[str, Any] = {"settings": settings.model_dump()}
    for key in ("image_px", "stochastic_depth"):
        if key in choice:
            changes[key] = choice[key]
    return revalidated(model, changes, f"{where}.set")


def starting_from(model: Model, choice: Mapping[str, Any], where: str) -> Model:
    """The model with the weights that a row's fine-tunings begin with in place of a training."""
    if not choice["finetune_px"]:
        raise ConfigError(
            f"configuration key {where}.set.start: {choice['start']!r} is what fine-tunings begin with, and finetune_px is []. "
            f"Give the pixels of one or more, e.g. finetune_px: [{model.image_px}]; weights to train from belong to the model."
        )
    try:
        return type(model).model_validate(
            {**model.model_dump(), "weights": choice["start"], "weights_sha256": choice.get("start_sha256")}
        )
    except pydantic.ValidationError as error:
        raise ConfigError(
            describe_problems(error).replace("key weights", f"key {where}.set.start")
            + ". Legal: hub, file:NAME, folder:NAME, "
            "package:NAME; start_sha256: 64 hexadecimal digits"
        ) from None


def canonical_recipe(recipe: Recipe) -> Recipe:
    """Drops what a supervision does not use, so that equal trainings have equal specs."""
    if recipe.supervision == "hard":
        return recipe.model_copy(
            update={
                "class_target": "label", "token_weight": 0.0, "participation": 1.0, "label_mass": "published",
                "geometry": "exact",
            }
        )  # fmt: skip
    if recipe.supervision == "relabel":
        return recipe.model_copy(update={"class_target": "map", "token_weight": 0.0, "participation": 1.0})
    return recipe


def capped_recipe(recipe: Recipe, caps: Caps) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe within the caps, and what they changed, in words."""
    update: dict[str, Any] = {}
    notes = []
    if caps.epochs is not None and caps.epochs < recipe.epochs:
        update["epochs"] = caps.epochs
        update["warmup_epochs"] = min(recipe.warmup_epochs, caps.epochs // 5)
        update["cooldown_epochs"] = min(recipe.cooldown_epochs, caps.epochs // 10)
        notes.append(f"epochs {recipe.epochs}->{caps.epochs}")
    if caps.batch_size is not None and caps.batch_size < recipe.batch_size:
        notes.append(f"batch_size {recipe.batch_size}->{caps.batch_size}")
        recipe = with_batch(recipe, caps.batch_size)
    return recipe.model_copy(update=update), tuple(notes)


def capped_model(model: Model, caps: Caps) -> tuple[Model, tuple[str, ...]]:
    """The model within the caps, and what they changed, in words."""
    notes = []
    update: dict[str, Any] = {}
    if caps.image_px is not None and caps.image_px < model.image_px:
        update["image_px"] = caps.image_px
        notes.append(f"image_px {model.image_px}->{caps.image_px}")
    settings: dict[str, Any] = {}
    depth, width = model.settings.depth, model.settings.width  # None: a timm backbone, whose size has no setting
    if caps.depth is not None and depth is not None and caps.depth < depth:
        settings["depth"] = caps.depth
        notes.append(f"depth {depth}->{caps.depth}")
    if caps.width is not None and width is not None and caps.width < width:
        settings["width"] = caps.width
        settings["heads"] = next(heads for heads in (4, 3, 2, 1) if caps.width % heads == 0)
        notes.append(f"width {width}->{caps.width}")
    update["settings"] = {**model.settings.model_dump(), **settings}
    return revalidated(model, update, "caps"), tuple(notes)
