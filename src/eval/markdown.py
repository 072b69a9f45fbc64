"""A result table as a page: readable as text, and rendered. Called by the table commands; measures and reads nothing.

A row without a run has empty cells and the state `planned`. What a cap changed stands in a row's last cell and again below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..core.paper import DATASET
from .tables import ResultRow

MEASURED = (
    "setting", "state", "seeds", "top-1 %", "paper %", "difference", "M parameters", "paper M", "G multiply-adds", "paper G",
    "GPU hours", "checkpoint",
)  # fmt: skip
TEXT_COLUMNS = (
    "setting",
    "state",
    "over",
    "checkpoint",
    "capped",
    "source",
    "method",
    "table",
    "paper",
    "rule",
    "remark",
)
MARKUP = re.compile(r"[\\*`<$~]|(?<!\w)_|_(?!\w)|(?<=\])\(")  # brackets alone are text, before a parenthesis a link
PAPER_ONLY = ("method", "top-1 %", "ReaL %", "M parameters", "G multiply-adds", "train px", "test px")


def as_markdown(table: dict[str, Any], rows: Sequence[ResultRow]) -> str:
    """The page of a table.

    Args:
        table: its plan, for the question and the paper's other rows.
        rows: as `collect_rows` gives them.
    """
    parts = [f"# {one_line(table['question'])}", _caption(table, rows), format_table(*_cells(rows))]
    capped = [row for row in rows if row.capped]
    if capped:
        changed = "; ".join(f"{one_line(row.label)} ({one_line(row.capped)})" for row in capped)
        parts.append(f"Capped, so another experiment than the paper's and without a difference to it: {changed}.")
    if table.get("paper_only"):
        parts += [
            "Paper only: methods that this study does not train, with the paper's numbers.",
            format_table(PAPER_ONLY, [_paper_cells(row) for row in table["paper_only"]]),
        ]
    return "\n\n".join(parts) + "\n"


def _caption(table: dict[str, Any], rows: Sequence[ResultRow]) -> str:
    images = sorted({row.val_images for row in rows if row.val_images is not None})
    states = {state: sum(row.state == state for row in rows) for state in ("done", "partial", "planned")}
    sentences = [
        f"In the paper (arXiv 2104.10858): {one_line(table['paper'])}.",
        f"Rows: {', '.join(f'{count} {state}' for state, count in states.items() if count)}.",
        f"Validation photographs: {', '.join(f'{count:,}' for count in images) or 'none yet'}.",
        "Ours: mean over the seeds, ± their standard deviation from two on.",
        "GPU hours: of one seed with the trainings that it starts from; on a CPU the hours of its jobs.",
    ]
    if any(row.paper_top1 is not None and row.paper_source != "configuration" for row in rows) and (
        table.get("dataset", DATASET) != DATASET
    ):
        sentences.append(
            f"The paper's numbers are of ImageNet-1k, ours of {one_line(table['dataset'])}: no difference is given."
        )
    return "\n".join(sentences)


def _cells(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; columns that no row of this table fills are left out, but for those that every table has."""
    test_sets = sorted({name for row in rows for name in row.test_sets})
    optional: dict[str, list[str]] = {
        "top-5 %": [_number(row.top5_mean) for row in rows],
        "ReaL %": [_with_deviation(row.real_top1_mean, row.real_top1_sd) for row in rows],
        "paper ReaL %": [_number(row.paper_real_top1, 1) for row in rows],
        "ECE %": [_number(row.ece_mean) for row in rows],
        **{f"{name} %": [_number(row.test_sets.get(name)) for row in rows] for name in test_sets},
        "source": [row.paper_source or "" for row in rows],
        "capped": [row.capped for row in rows],
    }
    shown = {name: cells for name, cells in optional.items() if any(cells)}
    body = [
        [
            row.label,
            row.state,
            f"{row.seeds} of {row.seeds_planned}",
            _with_deviation(row.top1_mean, row.top1_sd),
            _number(row.paper_top1, 1),
            "" if row.difference is None else f"{row.difference:+.2f}",
            _number(row.parameters_m),
            _printed(row.paper_parameters_m),
            _number(row.gmacs),
            _printed(row.paper_gmacs),
            _number(row.gpu_hours),
            row.weights_sha256,
            *(cells[position] for cells in shown.values()),
        ]
        for position, row in enumerate(rows)
    ]
    return [*MEASURED, *shown], body


def _paper_cells(row: dict[str, Any]) -> list[str]:
    sizes = ["" if row[name] is None else f"{row[name]}" for name in ("train_px", "test_px")]
    accuracies = (_number(row[name], 1) for name in ("top1", "real_top1"))
    return [row["name"], *accuracies, *(_printed(row[name]) for name in ("parameters_m", "gmacs")), *sizes]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _with_deviation(mean: float | None, deviation: float | None) -> str:
    return _number(mean) + (f" ± {deviation:.2f}" if deviation is not None else "")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as text too; numbers to the right. Cells may hold any characters."""
    cells = [[_cell(text) for text in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(header))]
    left = [name in TEXT_COLUMNS for name in header]
    rule = [("-" * width) if text else ("-" * (width - 1) + ":") for width, text in zip(widths, left, strict=True)]
    lines = [
        [
            text.ljust(width) if is_text else text.rjust(width)
            for text, width, is_text in zip(line, widths, left, strict=True)
        ]
        for line in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _cell(text: str) -> str:
    """A label as a cell shows it: a bar would end the cell, a newline the row, and the others would be taken for markup."""
    return one_line(text).replace("|", r"\|")


def one_line(text: str) -> str:
    """Text of a user in one line, with what Markdown and HTML would read as markup escaped; words_with_bars stay readable."""
    return MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
