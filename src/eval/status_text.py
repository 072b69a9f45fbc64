"""A Status and a difference of two runs in words for a terminal. Called by `tokenlabel status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.log import in_time
from .job_states import STATES, State
from .run_difference import RunDifference
from .status import JobStatus, Status

SHOWN = 20  # jobs of one state; --all shows every one
_LOUD: tuple[State, ...] = ("running", "stalled", "failed", "interrupted", "unreadable")  # said one by one


def status_lines(status: Status, shown: int | None = SHOWN) -> list[str]:
    """The page that `tokenlabel status` prints.

    Args:
        status: what was found.
        shown: at most so many jobs of a state and so many folders; None: all.
    """
    lines = [f"study          {status.directory}, planned by {status.configuration}"]
    if status.manifest is not None:
        said = status.manifest
        lines.append(f"manifest       {said.state}{f': {said.reason}' if said.reason else ''}")
    for labels in status.labels:
        stale = f"; {len(labels.stale)} stale: of other photographs than the manifest's" if labels.stale else ""
        lines.append(f"labels         {labels.name}: {_counted(labels.counts, 'shard')}{stale}")
    if status.tables:
        width = max(len(table.name) for table in status.tables)
        lines += ["", f"{'table':{width}}  state       evaluated  trainings"]
        for table in status.tables:
            evaluated = f"{table.evaluated}/{table.evaluations}"
            lines.append(
                f"{table.name:{width}}  {table.state:10}  {evaluated:>9}  {_counted(table.trainings, 'training')}"
            )
    for state in _LOUD:
        found = [job for job in status.jobs if job.state == state]
        if found:
            lines += ["", f"{state} ({STATES[state]})"]
            lines += _first(["\n".join(_job(job)) for job in found], shown)
    if status.disk_bytes:
        lines += ["", f"disk           {in_bytes(sum(status.disk_bytes.values()))}"]
        lines += [f"  {in_bytes(size):>9}  {kind}" for kind, size in status.disk_bytes.items()]
    if status.unreferenced:
        total = sum(folder.size_bytes for folder in status.unreferenced)
        lines += ["", f"no selected table or annotator needs these, {in_bytes(total)}; nothing removes them but you:"]
        lines += _first(
            [
                f"  {in_bytes(folder.size_bytes):>9}  {folder.command or folder.folder}  # {folder.why}"
                for folder in status.unreferenced
            ],
            shown,
        )
    if status.problems:
        lines += ["", "problems"]
        lines += _first([f"  {problem}" for problem in status.problems], shown)
    return lines


def _first(lines: list[str], shown: int | None) -> list[str]:
    if shown is None or len(lines) <= shown:
        return lines
    return [*lines[:shown], f"  and {len(lines) - shown} more; --all shows them"]


def _counted(counts: Mapping[str, int], what: str) -> str:
    total = sum(counts.values())
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts.get(state))
    return f"{total} {what}{'s' if total != 1 else ''}{f': {said}' if said else ''}"


def _job(job: JobStatus) -> list[str]:
    parts = [job.name]
    if job.epochs is not None:
        parts.append(f"{job.epochs_done} of {job.epochs} epochs")
    if job.remaining_s is not None:
        parts.append(f"{in_time(job.remaining_s)} left")
    return [f"  {', '.join(parts)}", *(f"      {said}" for said in (job.reason, job.log) if said)]


def in_bytes(size: float) -> str:
    """A size in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def difference_lines(difference: RunDifference) -> list[str]:
    """What differs between two runs, in three columns, and their results beside each other."""
    rows: list[tuple[str, str, str]] = [("", difference.first, difference.second)]
    for title, pairs in difference.groups.items():
        rows.append((title, "", ""))
        rows += [(f"  {key}", _value(first), _value(second)) for key, (first, second) in pairs.items()]
        if not pairs:
            rows.append(("  (no difference)" if title != "results" else "  (none yet)", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{key:{widths[0]}}  {first:{widths[1]}}  {second}".rstrip() for key, first, second in rows] + [
        f"problem: {problem}" for problem in difference.problems
    ]


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return _joined(value) if isinstance(value, (list, tuple)) else str(value)


def _joined(values: Iterable[object]) -> str:
    return "[" + ", ".join(map(_value, values)) + "]"
