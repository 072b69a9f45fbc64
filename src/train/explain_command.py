"""Shows a recipe as a run would have it: every value, what it means, where it comes from, and how it differs from another.

Also `tokenlabel train --explain`. Reads config.yaml and a study's overlays and needs neither data nor GPU. What the words about
a value are is written once, in the configuration's own comments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.command import read_document
from ..core.config import Config, RandAugmentOperation, Recipe, load_config
from ..core.errors import DataError, unknown_name
from ..core.files import read_json
from ..core.identity import digest_of
from ..core.overlays import read_configuration, study_files
from ..core.recipe_sources import RecipeSources, read_recipe_sources
from ..core.recipes import Schedule, check_schedule, recipe_of, with_batch
from ..core.rows import canonical_recipe, capped_model, capped_recipe

COUNTERPARTS = {"released_code": "paper_text", "finetune": "paper_text_finetune"}
WIDTH_KEY, WIDTH_VALUE, WIDTH_SOURCE, WIDTH_LEAST = 24, 16, 34, 120  # characters


@dataclass(frozen=True)
class Setting:
    """One value of a recipe and what is known of it."""

    key: str
    value: Any
    meaning: str
    source: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what is shown."""
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--recipe", default=None, help="name of a recipe (default: the study's own)")
    shown.add_argument("--spec", type=Path, default=None, help="spec.json of a run, instead of a recipe's name")
    parser.add_argument("--against", default=None, help="recipe to compare with (default: the text's for the code's)")
    parser.add_argument("--model", default=None, help="model that is trained (default: the study's own)")
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="overlays, as snakemake takes them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the recipe.

    Raises:
        ConfigError: a mistake in the configuration, a name that it does not have, or, after the table, a schedule that cannot
            run on this machine.
        DataError: the spec is missing or not that of a training.
    """
    files = study_files(args.configfile)
    config = load_config(read_configuration(files))
    sources = read_recipe_sources(files)
    model_name = _known("model", args.model or config.defaults.model, config.models)
    images = min(config.dataset.train_images, config.caps.images or config.dataset.train_images)
    of = ""
    if args.spec is None:
        name = _known("recipe", args.recipe or config.defaults.recipe, config.recipes)
        model, _ = capped_model(config.models[model_name], config.caps)
        title, image_px, drop = f"recipe {name}, model {model_name}", model.image_px, model.stochastic_depth
        settings = explain_recipe(name, config, sources)
    else:
        spec = read_document(args.spec, "the run's spec")
        if not all(isinstance(spec.get(key), dict) for key in ("recipe", "dataset", "model")):
            raise DataError(
                f"{args.spec}: no spec of a training (recipe, dataset, model). Give a spec.json of results/runs."
            )
        settings, name = explain_spec(spec, config, sources, str(args.spec))
        images, of = _photographs_of(args.spec, spec, images, config.dataset.name)
        title = f"{spec['stage']} of {args.spec}, nearest recipe {name}, model {spec['model']['architecture']}"
        image_px, drop = spec["image_px"], spec["model"]["stochastic_depth"]
    other = _known("recipe", args.against or COUNTERPARTS.get(name, "released_code"), config.recipes)
    against = explain_recipe(other, config, sources)
    recipe = _as_recipe(settings)
    if args.json:
        document = {
            "title": title,
            "image_px": image_px,
            "stochastic_depth": drop,
            "schedule": asdict(Schedule.of(recipe, config.machine, images)),
            "settings": [asdict(setting) for setting in settings],
            "against": {
                "recipe": other,
                "differs": {key: asdict(theirs) for key, (_, theirs) in differences(settings, against).items()},
            },
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201
        return 0
    lines = [
        f"{title} at {image_px} px, stochastic depth {drop:g}, {images:,} photographs{of}",
        *describe_schedule(recipe, config, images),
    ]
    width = max(shutil.get_terminal_size().columns, WIDTH_LEAST)
    print("\n".join([*lines, "", *table(settings, width), "", *comparison(settings, against, other, width)]))  # noqa: T201
    check_schedule(recipe, config.machine, title)
    return 0


def explain_recipe(name: str, config: Config, sources: RecipeSources) -> list[Setting]:
    """A recipe's values as a run has them: caps are applied, and what its supervision does not use is said so."""
    stated = config.recipes[name]
    used = canonical_recipe(stated)
    recipe, _ = capped_recipe(used, config.caps)
    found = []
    for key, value in recipe.model_dump(mode="json").items():
        if getattr(recipe, key) != getattr(used, key):
            cap = "epochs" if "epochs" in key else "batch_size"
            source = f"caps.{cap}, {sources.caps[cap].file}:{sources.caps[cap].line}"
        elif getattr(used, key) != getattr(stated, key):
            source = f"unused: supervision {stated.supervision}"
        else:
            source = _source(name, key, sources)
        found.append(Setting(key, value, sources.meanings.get(key, ""), source))
    return found


def explain_spec(
    spec: Mapping[str, Any], config: Config, sources: RecipeSources, where: str
) -> tuple[list[Setting], str]:
    """A run's values, sources taken from the recipe of the configuration that is nearest to it; and that recipe's name.

    Raises:
        ConfigError: a value that is not legal; `where` is the spec's file.
    """
    recipe = recipe_of(spec, Recipe, where).model_dump(mode="json")
    known = {name: explain_recipe(name, config, sources) for name in config.recipes}
    nearest = min(known, key=lambda name: sum(setting.value != recipe[setting.key] for setting in known[name]))
    return [
        setting
        if setting.value == recipe[setting.key]
        else Setting(
            setting.key, recipe[setting.key], setting.meaning, f"the run's own; {nearest}: {show_value(setting.value)}"
        )
        for setting in known[nearest]
    ], nearest


def _photographs_of(path: Path, spec: Mapping[str, Any], configured: int, configured_name: str) -> tuple[int, str]:
    """Training photographs of a run, as its manifest counted them, and a warning where it is not there and nothing else knows."""
    data = spec["dataset"]
    if isinstance(data.get("images"), int):
        return data["images"], ""
    manifest = path.resolve().parent.parent.parent / "data" / f"{data.get('name')}-{digest_of(data)}" / "manifest.done"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_json(manifest)["splits"]["train"]["images"]), ""
    if data.get("name") == configured_name:
        return configured, ""
    return (
        configured,
        f" (of {configured_name}: those of {data.get('name')} are not known here; give --configfile, its overlays)",
    )


def differences(ours: Sequence[Setting], theirs: Sequence[Setting]) -> dict[str, tuple[Setting, Setting]]:
    """Key -> both settings, where their values differ."""
    return {one.key: (one, two) for one, two in zip(ours, theirs, strict=True) if one.value != two.value}


def describe_schedule(recipe: Recipe, config: Config, images: int) -> list[str]:
    """What the recipe comes to: rate and its rule, epochs and steps, micro-batches of each process."""
    machine = config.machine
    schedule = Schedule.of(recipe, machine, images)
    processes = machine.processes * machine.nodes
    recipe = with_batch(recipe, schedule.batch_size)
    rule = ", whatever the batch"
    if recipe.learning_rate_batch:
        rule = (
            f" = {recipe.learning_rate:g} x {schedule.batch_size} / {recipe.learning_rate_batch} (it follows batch_size; "
            "half the batch, half the rate)"
        )
    warmup = recipe.warmup_epochs * schedule.steps_per_epoch
    total = (recipe.epochs + recipe.cooldown_epochs) * schedule.steps_per_epoch
    falls = recipe.min_learning_rate < schedule.learning_rate
    course = (
        f"cosine to {recipe.min_learning_rate:g} at epoch {recipe.epochs}"
        if falls
        else f"constant to epoch {recipe.epochs}"
    )
    return [
        f"  learning rate  {schedule.learning_rate:g}{rule}",
        f"  warm-up        {recipe.warmup_epochs} epochs ({warmup:,} steps)"
        + (f" from {recipe.warmup_learning_rate:g}" if warmup else ""),
        f"  then           {course}, {recipe.cooldown_epochs} epochs of cool-down; {total:,} steps in all, "
        f"{schedule.steps_per_epoch:,} an epoch",
        f"  step           {schedule.batch_size:,} photographs = {schedule.micro_batches} micro-batches of at most "
        f"{machine.micro_batch}, {schedule.micro_batches / processes:g} for each of "
        + (
            f"{processes} processes on machine.nodes {machine.nodes}"
            if machine.nodes > 1
            else f"machine.processes {processes}"
        ),
    ]


def table(settings: Sequence[Setting], width: int) -> list[str]:
    """Aligned columns: key, value, source, meaning with unit and legal values; long words wrap in their column."""
    widths = (WIDTH_KEY, WIDTH_VALUE, WIDTH_SOURCE, width - WIDTH_KEY - WIDTH_VALUE - WIDTH_SOURCE)
    rows = [("key", "value", "source", "meaning, unit, legal values")]
    rows += [(one.key, show_value(one.value), one.source, one.meaning) for one in settings]
    return [line for row in rows for line in _wrapped(row, widths)]


def comparison(ours: Sequence[Setting], theirs: Sequence[Setting], other: str, width: int) -> list[str]:
    """The values that differ from another recipe's, with the other's source."""
    differing = differences(ours, theirs)
    lines = [f"differs from {other} in {len(differing)} of {len(ours)} values" + (":" if differing else "")]
    widths = (WIDTH_KEY, WIDTH_VALUE, WIDTH_VALUE + 4, width - WIDTH_KEY - 2 * WIDTH_VALUE - 4)
    rows = [("key", "here", other, f"source in {other}")] if differing else []
    rows += [(key, show_value(one.value), show_value(two.value), two.source) for key, (one, two) in differing.items()]
    return lines + [line for row in rows for line in _wrapped(row, widths)]


def _wrapped(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    columns = [
        textwrap.wrap(cell, size - 2, break_on_hyphens=False) or [""] for cell, size in zip(cells, widths, strict=True)
    ]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [
        "".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def _source(recipe: str, key: str, sources: RecipeSources) -> str:
    origin = sources.origins[recipe][key]
    if origin.file == sources.base and origin.words:
        return origin.words
    return f"{origin.file}:{origin.line}" + (f": {origin.words}" if origin.words else "")


def show_value(value: Any) -> str:
    """A value as it is read at a glance: as YAML writes it, RandAugment's operations by what is left out."""
    if value == []:
        return "none"
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        left_out = [name for name in typing.get_args(RandAugmentOperation) if name not in value]
        return f"all {len(value)}" if not left_out else f"all but {', '.join(left_out)}"
    return value if isinstance(value, str) else json.dumps(value)


def _as_recipe(settings: Sequence[Setting]) -> Recipe:
    return Recipe.model_validate({setting.key: setting.value for setting in settings})


def _known(kind: str, name: str, catalogue: Mapping[str, Any]) -> str:
    if name not in catalogue:
        raise unknown_name(kind, name, catalogue)
    return name
