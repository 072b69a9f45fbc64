"""Says where a study stands: done, running, failed, stale; disk use; what nothing refers to; how two runs differ."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..core.command import read_document
from ..core.errors import ConfigError, DataError
from ..core.overlays import read_configuration, study_files
from ..core.study import Study
from .run_difference import compare_runs
from .status import gather
from .status_text import SHOWN, difference_lines, status_lines

RESOLVED = Path("results/study.json")  # the merged configuration, as the last snakemake that ran a job wrote it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="folder that holds results/, as snakemake's (default: here)"
    )
    parser.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        default=[],
        help="overlays of the study (default: what the last snakemake used, results/study.json)",
    )
    parser.add_argument("--diff", nargs=2, metavar="RUN", help="two runs instead: what differs, and their results")
    parser.add_argument("--all", action="store_true", help=f"every job and folder, not {SHOWN} of a kind")
    parser.add_argument("--json", action="store_true", help="the same as JSON, complete, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    """Prints the status; exit code 0 whatever it says."""
    base: Path = args.directory
    if not base.is_dir():
        raise DataError(f"--directory {base}: no such folder. Give the one that snakemake ran in.")
    if args.diff:
        difference = compare_runs(base, *args.diff)
        _print(dataclasses.asdict(difference) if args.json else difference_lines(difference))
        return 0
    if not (base / "results").is_dir() and not args.configfile:
        status = gather(base, None, "nothing", look_s=0)
        said = [f"{base.resolve()}: no results here yet. `snakemake -n all` shows what would run."]
        _print(dataclasses.asdict(status) if args.json else said)
        return 0
    study, configuration = _plan(base, args.configfile)
    status = gather(base, study, configuration)
    if study is None:
        status.problems.insert(0, configuration)
    _print(dataclasses.asdict(status) if args.json else status_lines(status, None if args.all else SHOWN))
    return 0


def _plan(base: Path, overlays: list[Path]) -> tuple[Study | None, str]:
    """The plan and where it is from; None and the reason where results/study.json gives none."""
    if overlays:
        files = study_files(overlays)
        return Study.plan(read_configuration(files)), ", ".join(map(str, files))
    path = base / RESOLVED
    try:
        return Study.plan(read_document(path, "the study's configuration")), str(RESOLVED)
    except (ConfigError, DataError) as error:
        return None, f"no plan ({error}); give the study's overlays with --configfile"


def _print(document: dict[str, Any] | list[str]) -> None:
    text = "\n".join(document) if isinstance(document, list) else json.dumps(document, indent=1, ensure_ascii=False)
    print(text)  # noqa: T201
