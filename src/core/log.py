"""What a job writes down: first its identity, last its cost, in between plain lines.

INFO goes to the log file (and to the terminal when there is no file); warnings and errors always reach the terminal too,
so that a tired user sees the reason without looking for a file.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from .errors import OutputError, TokenLabelError, one_line

logger = logging.getLogger("tokenlabel")


def process_rank() -> int:
    """Number of this process among those of its training, by what torchrun or Slurm's srun left in the environment; 0 alone."""
    known = os.environ
    if "WORLD_SIZE" in known and "RANK" in known:
        return int(known["RANK"])
    # of the step, not of the job: a script that sbatch runs has SLURM_PROCID too, and is alone
    return int(known["SLURM_PROCID"]) if int(known.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else 0


def set_up_logging(log_file: Path | None) -> None:
    """Sends the package's log to a file and warnings to standard error.

    Of several processes each has a file of its own: train.log, train.rank1.log, ...

    Raises:
        OutputError: the file cannot be written.
    """
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(terminal)
    if log_file is None:
        return
    terminal.setLevel(logging.WARNING)
    if rank := process_rank():
        log_file = log_file.with_suffix(f".rank{rank}{log_file.suffix}")
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file, mode="a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{log_file}: the log cannot be written ({error.strerror}).") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)


def log_failure(error: Exception) -> None:
    """Writes what ended a job into its log file, where `tokenlabel status` and a user look for it.

    The terminal hears of it from `exit_on_user_error`, or from Python where it is a bug of ours.
    """
    if isinstance(error, TokenLabelError):
        # another exit code: a signal or a deadline ended it, and its work is saved
        level = logging.ERROR if error.exit_code == TokenLabelError.exit_code else logging.WARNING
        record = logger.makeRecord(logger.name, level, __file__, 0, one_line(error), (), None)
    else:
        about = (type(error), error, error.__traceback__)
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "failed:", (), about)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


@contextmanager
def job_log(title: str, *, digest: str, seed: int | None, device: str) -> Iterator[dict[str, float]]:
    """Logs a job's first and last lines.

    Yields:
        a dictionary; set `images` in it to have images/s in the last line.
    """
    libraries = " ".join(f"{name} {version}" for name, version in library_versions().items())
    logger.info("command: %s", " ".join(sys.argv))
    logger.info(
        "%s: spec %s, commit %s, device %s, seed %s, host %s, %s",
        title, digest, git_commit(), device, seed, platform.node(), libraries,
    )  # fmt: skip
    counts: dict[str, float] = {}
    started = time.monotonic()
    yield counts
    elapsed_s = time.monotonic() - started
    rate = f", {counts['images'] / elapsed_s:.1f} images/s" if "images" in counts and elapsed_s else ""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    logger.info("%s: done in %.1f s%s, peak memory %.0f MB", title, elapsed_s, rate, peak_mb)


def library_versions() -> dict[str, str]:
    """Versions of what changes numbers; a library that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in ("tokenlabel", "torch", "torchvision", "timm", "numpy", "h5py", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """Commit of the checkout that this package lies in, with a `+` when the tree has changes; `unknown` elsewhere."""
    if "TOKENLABEL_COMMIT" in os.environ:  # set by the workflow, so that 500 jobs do not each ask git
        return os.environ["TOKENLABEL_COMMIT"]
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "unknown"
    try:
        described = subprocess.run(
            # git would not answer in a checkout that another user of the group made; whoever runs its code trusts it
            ["git", "-c", f"safe.directory={folder}", "-C", folder, "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip() or "unknown"


def in_time(seconds: float) -> str:
    """A duration in its two largest units: 20 s, 59 min, 3 h 5 min, 2 d 7 h."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h {minutes} min"
