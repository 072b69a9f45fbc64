"""Where every value of a recipe stands and comes from, as the comments of the configuration say it: the manual is the source.

A comment follows its value, on the same line and those below. The first recipe of config.yaml explains its keys: meaning, unit
and legal values, then after the last semicolon the source. Recipes that differ from it give their values' sources alone.
Called by `tokenlabel train --explain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Origin:
    """Where a value stands.

    Attributes:
        file: of the value.
        line: in it, from 1.
        words: the comment there; of a recipe's value its source.
    """

    file: Path
    line: int
    words: str


@dataclass(frozen=True)
class RecipeSources:
    """What the files of a study say of their recipes.

    Attributes:
        base: config.yaml, whose comments are the manual.
        meanings: key -> meaning, unit and legal values.
        origins: recipe -> key -> where its value stands; the last file that gives it counts, as in Snakemake's merge.
        caps: key -> where the cap stands.
    """

    base: Path
    meanings: dict[str, str]
    origins: dict[str, dict[str, Origin]]
    caps: dict[str, Origin]


def read_recipe_sources(files: Sequence[Path]) -> RecipeSources:
    """Reads config.yaml and its overlays, in this order; all of them have been read without an error before."""
    meanings: dict[str, str] = {}
    origins: dict[str, dict[str, Origin]] = {}
    caps: dict[str, Origin] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        sections = dict(_entries(yaml.compose(text, Loader=yaml.SafeLoader)))
        caps |= {key: _origin(file, lines, value) for key, value in _entries(sections.get("caps"))}
        recipes = dict(_entries(sections.get("recipes")))
        first = next(iter(recipes.values()), None) if file == files[0] else None
        explained = {id(value) for _, value in _entries(first)}  # recipes that merge it share its nodes
        for name, recipe in recipes.items():
            for key, value in _entries(recipe):
                origin = _origin(file, lines, value)
                if id(value) in explained:
                    meanings[key], _, source = (part.strip() for part in origin.words.rpartition(";"))
                    origin = replace(origin, words=source)
                origins.setdefault(name, {})[key] = origin
    return RecipeSources(files[0], meanings, origins, caps)


def _origin(file: Path, lines: Sequence[str], value: yaml.Node) -> Origin:
    return Origin(file, value.start_mark.line + 1, _comment(lines, value.end_mark))


def _entries(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """Keys and values of a mapping, what it merges (`<<`) first, so that its own come last and count."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.tag == _MERGE:
            for merged in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _entries(merged)
    for key, value in node.value:
        if key.tag != _MERGE:
            yield key.value, value


def _comment(lines: Sequence[str], end: yaml.Mark) -> str:
    """The comment after a value: the rest of its line and the lines below that hold nothing else."""
    rest = lines[end.line][end.column :].strip() if end.line < len(lines) else ""
    if not rest.startswith("#"):
        return ""
    words = [rest]
    for line in lines[end.line + 1 :]:
        if not line.strip().startswith("#"):
            break
        words.append(line.strip())
    return " ".join(word.lstrip("# ") for word in words)
