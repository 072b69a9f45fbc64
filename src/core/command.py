"""The arguments that all stages share, and how a stage's command starts, logs and ends.

A stage's `command.py` has `add_arguments(parser)` and `run(args) -> int`; `python -m tokenlabel.<stage>` and
`tokenlabel <verb>` both come through `run_stage`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, exit_on_user_error, missing_packages_named
from .files import read_json
from .log import log_failure, set_up_logging

MEND = "Mend it, or delete it and run snakemake, which makes it again."
WRITTEN_AT_START = "The workflow writes it when it starts; run snakemake."


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every job of the workflow takes."""
    parser.add_argument("--spec", type=Path, required=True, help="spec.json of the run: what decides the numbers")
    parser.add_argument("--machine", type=Path, required=True, help="machine.json: roots, device, workers")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


class Section(dict[str, Any]):
    """A JSON object, or one inside it, that names itself and the key where one is missing: a spec by hand, or of other code.

    Args:
        values: what json.load gave.
        name: the file and what it is; keys of inner objects are told with their path.
    """

    def __init__(self, values: dict[str, Any], name: str, path: str = "") -> None:
        super().__init__(
            (key, Section(value, name, f"{path}{key}.") if isinstance(value, dict) else value)
            for key, value in values.items()
        )
        self._name, self._path = name, path

    def __missing__(self, key: str) -> Any:
        raise ConfigError(
            f"{self._name}: no key {self._path}{key}. Add it (config.yaml says what it means), or let snakemake write the file."
        )

    def __or__(self, other: dict[str, Any]) -> Section:  # type: ignore[override]
        return Section({**self, **other}, self._name, self._path)

    def __reduce__(self) -> Any:  # other processes, and files, get what it is otherwise: a dictionary
        return dict, (dict(self),)


def read_document(
    path: Path, what: str, remedy: str = WRITTEN_AT_START, sections: Sequence[str] = ()
) -> dict[str, Any]:
    """Reads a JSON object that a job was pointed to.

    Args:
        path: of the file.
        what: it is, for errors.
        remedy: what to do where it is missing.
        sections: keys that must be objects where they are there; dotted for those inside others.

    Returns:
        the object; a key that it lacks raises a ConfigError of one line where it is asked for.

    Raises:
        DataError: it is missing or no JSON object.
        ConfigError: a section is no object.
    """
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: {what} is missing. {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {what} cannot be read ({error}). {MEND}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: {what} must be a JSON object, found {type(document).__name__}. {MEND}")
    found = Section(document, f"{path}: {what}")
    for section in sections:
        *outer, name = section.split(".")
        holder = functools.reduce(lambda inner, key: inner[key], outer, found)
        if not isinstance(holder.get(name, {}), dict):
            raise ConfigError(
                f"{path}: {what}: {section} is {type(holder[name]).__name__}, expected an object. Mend it, or let snakemake write "
                "the file."
            )
    return found


def read_machine(path: Path) -> dict[str, Any]:
    """Reads machine.json, the workflow's or one by hand.

    Raises:
        DataError: as `read_document`.
        ConfigError: a value that is not legal.
    """
    from .machine_file import check_machine  # pydantic takes a moment that other commands need not wait

    document = read_document(path, "the machine settings")
    check_machine(document, str(path))
    return document


def run_stage(stage: str, argv: Sequence[str] | None = None) -> int:
    """Runs a stage's command as `python -m tokenlabel.<stage>`; returns the exit code."""

    def main() -> int:
        with missing_packages_named():
            module = importlib.import_module(f"..{stage}.command", __package__)
        parser = argparse.ArgumentParser(prog=f"python -m tokenlabel.{stage}", description=module.__doc__)
        module.add_arguments(parser)
        return run_command(module.run, parser.parse_args(argv))

    return exit_on_user_error(main)


def run_command(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a parsed command: log set up, the user's mistakes as one line and exit code 2, Ctrl-C as 130."""

    def main() -> int:
        set_up_logging(getattr(args, "log", None))
        try:
            with missing_packages_named():
                return run(args)
        except Exception as error:
            log_failure(error)
            raise

    try:
        return exit_on_user_error(main)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # `tokenlabel labels inspect | head`
        sys.stderr.close()
        return 0
