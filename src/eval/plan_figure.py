"""Where the hours of a plan go: a bar for each target, by stage; what it adds to the targets above it is solid."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from ..core.files import atomic_path
from ..core.plan import Plan
from ..core.plan_jobs import STAGES
from .figures import BLUE, GREEN, GREY, ORANGE, STYLE

COLOURS = dict(zip(STAGES, (GREEN, BLUE, ORANGE, GREY), strict=True))
NAMES = {"label": "labels", "train": "training", "finetune": "fine-tuning", "evaluate": "evaluation"}
FAINT = 0.3  # opacity of hours that another target pays for


def draw_plan(plan: Plan, path: Path) -> None:
    """Draws the plan to a PNG file, targets in the plan's order from the top."""
    settings = plan.settings
    rows = [row for row in plan.rows if row.target != "report"]  # all that total is
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.27 * len(rows)))
        for place, row in enumerate(rows):
            left = 0.0
            for hours, opacity in ((row.additional_hours, 1.0), (_shared(row.hours, row.additional_hours), FAINT)):
                for stage in STAGES:
                    axes.barh(place, hours[stage], left=left, color=COLOURS[stage], alpha=opacity, height=0.7)
                    left += hours[stage]
            axes.annotate(
                f"{row.gpu_hours:,.0f}" if row.gpu_hours >= 10 else f"{row.gpu_hours:.2g}", (left, place),
                xytext=(3, 0), textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [row.target for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"GPU hours on {settings['gpu']}")
        total = plan.rows[-1]
        axes.set_title(
            f"Where the hours go: {total.gpu_hours:,.0f} GPU hours, {total.cost:,.0f} {settings['currency']}",
            loc="left", fontsize=9,
        )  # fmt: skip
        keys = [Patch(color=COLOURS[stage], label=NAMES[stage]) for stage in STAGES]
        keys.append(Patch(color=BLUE, alpha=FAINT, label="paid for by a target above"))
        axes.legend(handles=keys, frameon=False, fontsize=7, loc="upper right")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def _shared(hours: dict[str, float], additional: dict[str, float]) -> dict[str, float]:
    return {stage: hours[stage] - additional[stage] for stage in hours}
