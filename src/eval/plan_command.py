"""Prices a study: jobs, GPU hours, wall time, storage and cost of each target, before it runs and while it does.

By hand, in the folder that holds the study's results: `tokenlabel plan --configfile my_study.yaml` prints the page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..core.command import read_document
from ..core.errors import ConfigError, DataError
from ..core.files import write_text
from ..core.first_light import finished_first_light
from ..core.log import logger
from ..core.overlays import read_configuration, study_files
from ..core.plan import Plan, plan_study
from ..core.study import Study
from .plan_table import as_csv, as_markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the plan's job and of the command by hand."""
    parser.add_argument(
        "--spec", type=Path, default=None, help="the plan as the workflow writes it; else it is made here"
    )
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], metavar="FILE", help="overlays of the study, as for snakemake"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(),
        help="folder that holds the study's results and benchmarks (default: here)",
    )
    parser.add_argument("--csv", type=Path, default=None, help="table to write")
    parser.add_argument("--markdown", type=Path, default=None, help="page to write")
    parser.add_argument("--figure", type=Path, default=None, help="PNG file to write")
    parser.add_argument("--log", type=Path, default=None, help="log file (default: the terminal)")


def run(args: argparse.Namespace) -> int:
    """Writes what is asked for; prints the page where nothing is."""
    if args.spec is None:
        raw = read_configuration(study_files(args.configfile))
        study = Study.plan(raw)
        plan = plan_study(study, args.directory, finished_first_light(raw, study, args.directory))
    else:
        plan = _read_plan(args.spec)
    if args.csv is not None:
        write_text(args.csv, as_csv(plan))
    if args.markdown is not None:
        write_text(args.markdown, as_markdown(plan))
    if args.figure is not None:
        from .plan_figure import draw_plan

        draw_plan(plan, args.figure)
    if args.csv is args.markdown is args.figure is None:
        sys.stdout.write(as_markdown(plan))
    total = plan.rows[-1]
    logger.info(
        "%d of %d jobs to do, %.1f of %.1f GPU hours",
        total.jobs_to_do,
        total.jobs,
        total.remaining_gpu_hours,
        total.gpu_hours,
    )
    return 0


def _read_plan(path: Path) -> Plan:
    document = read_document(path, "the plan")
    try:
        return Plan.from_json(document)
    except (ConfigError, KeyError, TypeError):  # of a key that is missing, and of one that is unknown
        raise DataError(f"{path}: not a plan of this version. Delete it and run snakemake results/plan.csv.") from None
