"""The plan as CSV and Markdown. Called by the command and by docs/tables.py; computes nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.plan import Plan, PlanRow
from ..core.plan_jobs import STAGES

HOURS = ("gpu_hours", "additional_gpu_hours", "remaining_gpu_hours", "wall_hours_least", "wall_hours")
GIGABYTES = ("labels_gb", "weights_gb", "checkpoints_gb")


def as_csv(plan: Plan) -> str:
    """Comma-separated text with a header; hours, 10^9 bytes and money with two decimals."""
    settings = plan.settings
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "target", "jobs", "jobs_to_do", *(f"{stage}_gpu_hours" for stage in STAGES), *HOURS, *GIGABYTES, "cost",
            "remaining_cost", "currency", "gpu", "gpus", "basis", "command",
        ]
    )  # fmt: skip
    for row in (*plan.rows, *plan.unselected):
        numbers = [
            *(row.hours[stage] for stage in STAGES), *(getattr(row, name) for name in (*HOURS, *GIGABYTES)), row.cost,
            row.remaining_cost,
        ]  # fmt: skip
        writer.writerow(
            [
                row.target, row.jobs, row.jobs_to_do, *(f"{number:.2f}" for number in numbers), settings["currency"],
                settings["gpu"], settings["gpus"], row.basis, row.command,
            ]
        )  # fmt: skip
    return out.getvalue()


def as_markdown(plan: Plan) -> str:
    """A page: the rows, what to know about them, the coefficients and how finished jobs corrected them."""
    settings = plan.settings
    gpus = f"{settings['gpus']} {settings['gpu']}"
    lines = [
        "# What this study costs",
        "",
        f"On {gpus}, {settings['processes']} of them a training, at {settings['price_per_gpu_hour']:g} "
        f"{settings['currency']} a GPU hour. *Additional* is what the targets above do not pay for already, *remaining* what "
        "is not finished. Wall time is of what remains, without waiting in a queue. Jobs without a GPU are counted, not timed.",
        "",
        *_markdown(*row_cells((*plan.rows, *plan.unselected), settings["currency"])),
        "",
        *(f"- {note}" for note in plan.notes),
        *([""] if plan.notes else []),
        "## Coefficients",
        "",
        *_markdown(*coefficient_cells(settings)),
        "",
        "## Corrections by jobs that ran",
        "",
        *(_markdown(*_correction_cells(plan)) if plan.corrections else ["None yet: no job is finished."]),
        "",
    ]
    return "\n".join(lines)


def row_cells(rows: Sequence[PlanRow], currency: str) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the targets."""
    heading = [
        "target", "jobs", "to do", "GPU hours", "additional", "remaining", "wall hours, at least", "list schedule",
        "labels GB", "weights GB", "checkpoints GB", currency, "basis",
    ]  # fmt: skip
    cells = [
        [
            row.target, f"{row.jobs:,}", f"{row.jobs_to_do:,}",
            *(_short(getattr(row, name)) for name in (*HOURS, *GIGABYTES)), f"{row.cost:,.0f}", row.basis,
        ]
        for row in rows
    ]  # fmt: skip
    return heading, cells


def coefficient_cells(settings: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the GPU types of a plan's settings, the chosen one in bold."""
    cells = [
        [
            f"**{name}**" if name == settings["gpu"] else name, f"{gpu['peak_tflops']:g}",
            f"{gpu['peak_tflops'] * gpu['train_share']:.3g}", f"{gpu['peak_tflops'] * gpu['infer_share']:.3g}",
            gpu["evidence"], gpu["source"],
        ]
        for name, gpu in settings["gpu_types"].items()
    ]  # fmt: skip
    return ["GPU", "peak TFLOPS", "achieved in training", "in forward passes", "evidence", "source"], cells


def _correction_cells(plan: Plan) -> tuple[list[str], list[list[str]]]:
    cells = [[found.kind, str(found.jobs), f"{found.ratio:.3g}"] for found in plan.corrections]
    return ["kind", "finished jobs", "measured / estimated"], cells


def _short(number: float) -> str:
    """Enough digits to tell small studies' hours apart, no more than one decimal for large ones."""
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}"


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines."""
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]
