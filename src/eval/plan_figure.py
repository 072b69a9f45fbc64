"""Where the hours of a plan go: a bar for each target, by stage; what it adds to the targets above it is solid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..core.plan import Plan
from ..core.plan_jobs import STAGES
from .style import BLUE, GREEN, GREY, LEGEND_PT, ORANGE, PURPLE, SMALL_PT, add_legend, page, save, styled, wrapped

COLOURS = dict(zip(STAGES, (GREEN, BLUE, ORANGE, PURPLE, GREY), strict=True))
NAMES = {
    "label": "labels", "train": "training", "finetune": "fine-tuning", "segment": "segmentation", "evaluate": "evaluation",
}  # fmt: skip
LABEL_IN = 1.75  # room for the names of targets
FAINT = 0.3  # opacity of hours that another target pays for


@dataclass(frozen=True)
class Bar:
    """One bar: stage -> GPU hours, and those of them that no target above pays for."""

    name: str
    hours: dict[str, float]
    additional: dict[str, float]


def draw_plan(plan: Plan, path: Path) -> None:
    """Draws the plan to a PNG file, targets in the plan's order from the top; the total stands in the title."""
    with styled():
        save(plan_figure(plan), path)


def plan_figure(plan: Plan) -> Figure:
    """The figure; call it in `styled`."""
    settings, total = plan.settings, plan.rows[-1]
    bars = collect_bars(plan)
    title = f"Where the hours go: {_hours(total.gpu_hours)} GPU hours in all, {total.cost:,.0f} {settings['currency']}"
    figure = page(0.7 + 0.3 * len(bars), [title], [])
    axes = figure.add_subplot()
    for place, bar in enumerate(bars):
        left = 0.0
        for opacity in (1.0, FAINT):
            for stage in STAGES:
                added = bar.additional[stage]
                width = added if opacity == 1.0 else bar.hours[stage] - added
                axes.barh(place, width, left=left, color=COLOURS[stage], alpha=opacity, height=0.7)
                left += width
        axes.annotate(
            _in_words(bar), (left, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=SMALL_PT
        )
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(bars)), [wrapped(bar.name, LABEL_IN, LEGEND_PT, most_lines=2) for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * max((sum(bar.hours.values()) for bar in bars), default=1.0))  # room for the words
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:,.6g}")
    axes.set_xlabel(f"GPU hours on {settings['gpu']}")
    drawn = [stage for stage in STAGES if stage != "segment" or any(bar.hours[stage] for bar in bars)]
    keys = [Patch(color=COLOURS[stage], label=NAMES[stage]) for stage in drawn]
    add_legend(figure, [*keys, Patch(color=BLUE, alpha=FAINT, label="paid for by a target above")])
    return figure


def collect_bars(plan: Plan) -> list[Bar]:
    """The targets that add hours, those of label alone as one bar: each is a hair's breadth beside a training."""
    bars: list[Bar] = []
    labels = [row for row in plan.rows[:-1] if row.hours["label"] and row.hours["label"] == row.gpu_hours]
    if labels:
        bars.append(
            Bar(
                name=f"labels of {len(labels)} annotators" if len(labels) > 1 else labels[0].target,
                hours={stage: sum(row.hours[stage] for row in labels) for stage in STAGES},
                additional={stage: sum(row.additional_hours[stage] for row in labels) for stage in STAGES},
            )
        )
    return bars + [
        Bar(name=row.target, hours=row.hours, additional=row.additional_hours)
        for row in plan.rows[:-1]
        if row not in labels and row.additional_gpu_hours > 0
    ]


def _in_words(bar: Bar) -> str:
    hours, added = sum(bar.hours.values()), sum(bar.additional.values())
    return _hours(hours) if hours - added < 1e-9 * hours else f"{_hours(hours)}, adds {_hours(added)}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
