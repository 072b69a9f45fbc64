"""config.yaml and the overlays of a study, merged as Snakemake merges them, for commands that run outside of the workflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]


def study_files(overlays: Sequence[Path]) -> list[Path]:
    """config.yaml of the working directory, else of the checkout that this package lies in, and the overlays after it.

    Raises:
        ConfigError: there is no config.yaml.
    """
    base = next((path for path in (Path("config.yaml"), CHECKOUT / "config.yaml") if path.is_file()), None)
    if base is None:
        raise ConfigError(
            f"no config.yaml in {Path.cwd()} nor in {CHECKOUT}. Run this in the checkout of tokenlabel or of your study."
        )
    return [base, *overlays]


def read_configuration(files: Sequence[Path]) -> dict[str, Any]:
    """The files of a study as one: dictionaries are merged, everything else is replaced.

    Raises:
        ConfigError: a file is missing or no YAML dictionary.
    """
    merged: dict[str, Any] = {}
    for path in files:
        merged = _merged(merged, read_yaml(path, "settings"))
    return merged


def read_yaml(path: Path, of: str) -> dict[str, Any]:
    """A YAML dictionary that a user wrote.

    Args:
        path: the file.
        of: what it holds, for the error.

    Raises:
        ConfigError: the file is missing or no YAML dictionary.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a dictionary of {of}, found {type(content).__name__}.")
    refuse_repeated_keys(path)
    return content


def refuse_repeated_keys(path: Path) -> None:
    """Refuses a file in which a key stands twice in one section: YAML keeps the last and loses, say, an experiment.

    Raises:
        ConfigError: names both lines.
    """
    try:
        top = yaml.compose(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # whoever reads it says so
        return
    seen: set[int] = set()  # sections that aliases repeat are one
    sections: list[tuple[str, Any]] = [("", top)]
    while sections:
        name, node = sections.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            sections += [(name, inner) for inner in node.value]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value != "<<" and lines.setdefault(str(key.value), line) != line:
                    raise ConfigError(
                        f"{path}, line {line}: {key.value!r} stands in line {lines[key.value]} of {name or 'the file'} already, "
                        "which would be lost. Rename or remove one."
                    )
                sections.append((f"{name}.{key.value}".removeprefix("."), value))


def _merged(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in overlay.items()
    }
    return {**base, **both}
