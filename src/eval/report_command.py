"""Makes results/report.html: Snakemake's own report, over those results that exist and are whole."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

from ..core.errors import DataError, OutputError
from ..core.files import rename_beside
from ..core.log import logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the report."""
    parser.add_argument("--snakefile", type=Path, default=Path("Snakefile"), help="the workflow (default: %(default)s)")
    parser.add_argument("--configfile", type=Path, nargs="*", default=[], help="overlays that the study was run with")
    parser.add_argument("--pages", type=Path, default=Path("results/pages"), help="made before by `report pages`")
    parser.add_argument(
        "--out", type=Path, default=Path("results/report.html"), help="file to write (default: %(default)s)"
    )
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Calls Snakemake's report on the pages alone, for which it waits for nothing that is missing.

    Raises:
        DataError: there are no pages, or Snakemake could not make the report.
        OutputError: it cannot be written.
    """
    if not args.pages.is_dir():
        raise DataError(f"{args.pages}: no such folder; it holds the report's pages. Run snakemake {args.out}.")
    temporary = args.out.with_name(f".tmp-{args.out.name}")
    command = [
        sys.executable, "-m", "snakemake", str(args.pages), "--snakefile", str(args.snakefile), "--directory", ".",
        "--nolock", "--quiet", "rules", "--report", str(temporary),  # `all` would say nothing of a full disk either
        # not --report-html-stylesheet-path, which --report replaces by what this says
        "--report-stylesheet", str(args.snakefile.parent / "rules" / "report.css"),
    ]  # fmt: skip
    if args.configfile:
        command += ["--configfile", *map(str, args.configfile)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode or not temporary.exists():
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        lines = [line.strip() for line in (finished.stderr or finished.stdout).splitlines() if line.strip()]
        reason = _reason(lines)
        if reason.startswith(("OSError", "PermissionError")):
            raise OutputError(f"{args.out}: cannot be written ({reason}). Free space or permission is needed there.")
        raise DataError(f"{args.out}: Snakemake could not make the report: {reason[:400]}")
    rename_beside(temporary, args.out.name)
    logger.info("%s: %d bytes", args.out, args.out.stat().st_size)
    return 0


def _reason(lines: list[str]) -> str:
    """Why Snakemake ended, of what it said: the line that says so with what follows it, else the last one, an exception's."""
    for place, line in enumerate(lines):
        if line.startswith(("error:", "Error", "WorkflowError")):
            return " ".join(lines[place : place + 3])
    return lines[-1] if lines else "it said nothing"
