"""What every training job is told on its command line, and how its documents are read: the same for train and segment.

Called by the stages' commands. Loads no torch, so that a mistake in what a job was pointed to is the first thing it says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..core.command import add_job_arguments
from ..core.errors import ConfigError, TokenLabelError

Documents = TypeVar("Documents")


def add_run_arguments(parser: argparse.ArgumentParser, *, start: str) -> None:
    """Declares the arguments of a training job.

    Args:
        parser: of the stage's command.
        start: what --start is the folder of, for its help.
    """
    add_job_arguments(parser)
    parser.add_argument("--manifest", type=Path, required=True, help="folder of the data set's manifest")
    parser.add_argument("--start", type=Path, default=None, help=start)
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default: %(default)s)")
    parser.add_argument("--done", type=Path, required=True, help="marker to write; weights and metrics lie beside it")
    parser.add_argument(
        "--until-epoch", type=int, default=None, metavar="N",
        help="a leg: end when N epochs of the run are done, and leave the checkpoint (default: the whole run)",
    )  # fmt: skip
    parser.add_argument(
        "--legs",
        type=int,
        default=1,
        metavar="N",
        help="of how many legs the run consists, for its marker (default: %(default)s)",
    )
    parser.add_argument(
        "--requeue", action="store_true",
        help="at the deadline put this Slurm job back into the queue, to continue with the same limits (default: end with 75)",
    )  # fmt: skip
    parser.add_argument(
        "--deadline", type=float, default=None, metavar="SECONDS",
        help="from now; the job saves its state and ends with exit code 75 before it (default: Slurm's end time, if any)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-changed", action="store_true",
        help="continue a run that another spec began; the marker lists what differs (default: refuse, with the list)",
    )  # fmt: skip


def read_first(args: argparse.Namespace, read: Callable[[argparse.Namespace], Documents]) -> Documents:
    """Reads what a job was pointed to; of several processes one says what is wrong with it.

    Args:
        args: with those of `add_run_arguments`.
        read: reads the documents.

    Raises:
        ConfigError: a leg of no epoch.
    """
    try:
        if args.until_epoch is not None and args.until_epoch < 1:
            raise ConfigError(f"--until-epoch {args.until_epoch}: a leg trains at least one epoch. Give 1 or more.")
        return read(args)
    except TokenLabelError:
        from .processes import join_processes

        with join_processes("cpu"):
            raise


def leg_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that `run_training` takes as they are."""
    return {
        "seed": args.seed,
        "done": args.done,
        "until_epoch": args.until_epoch,
        "legs": args.legs,
        "deadline_s": args.deadline,
        "requeue": args.requeue,
        "allow_changed": args.allow_changed,
    }
