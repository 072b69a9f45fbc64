"""The errors a user can cause or meet; each message says what was found, where, what was expected and what to do.

Raised everywhere, turned into one line and exit code 2 by `exit_on_user_error`. Bugs of ours stay tracebacks.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator


class TokenLabelError(Exception):
    """A mistake or a circumstance that the user can mend; shown as one line, `exit_code` is the process's then."""

    exit_code = 2


class ConfigError(TokenLabelError):
    """A key or value of the configuration that is not legal."""


class AnnotatorMisfitError(ConfigError):
    """An annotator of other classes than the data set's."""


class DataError(TokenLabelError):
    """Photographs, class folders or manifests that are missing or do not fit."""


class UnreadableImageError(DataError):
    """A photograph that cannot be read or whose bytes do not decode; the message is the reason that shards record."""


class LabelError(TokenLabelError):
    """A label shard or store that is missing, damaged or of another data set, annotator or version."""


class CheckpointError(TokenLabelError):
    """A checkpoint that is missing, damaged or of another model."""


class OutputError(TokenLabelError):
    """A place that cannot be written."""


class MissingPackageError(TokenLabelError):
    """A package that the base install does not bring."""


@contextlib.contextmanager
def missing_packages_named() -> Iterator[None]:
    """Turns an import that fails into a MissingPackageError; a module of our own that is missing stays a bug."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "tokenlabel").partition(".")[0]
        if package == "tokenlabel":
            raise
        raise MissingPackageError(
            f"the Python module {package} is not installed; `pip install tokenlabel` alone brings what the library needs. Run "
            "pip install 'tokenlabel[study]', or in a checkout make venv."
        ) from error


def unknown_name(kind: str, name: str, legal: Iterable[str], where: str = "") -> ConfigError:
    """Builds the error for a name that is in no catalogue, listing the legal ones and the nearest guess."""
    names = sorted(legal)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    place = f"{where}: " if where else ""
    return ConfigError(f"{place}unknown {kind} {name!r}.{hint} Legal: {', '.join(names) or '(none)'}")


def exit_on_user_error(main: Callable[[], int]) -> int:
    """Runs a command; prints a TokenLabelError as one line on standard error and returns its exit code."""
    try:
        return main()
    except TokenLabelError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return error.exit_code


def one_line(error: TokenLabelError) -> str:
    """What a user reads of an error."""
    text = str(error).strip()
    if text.startswith("Caught ") and "\n" in text:
        # torch's DataLoader wraps a worker's error in its traceback; the last line is what we said
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(text.split())
