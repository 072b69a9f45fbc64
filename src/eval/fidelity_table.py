"""Table and figure of label fidelity: one line per annotator, from what the stage that labels has measured.

Called by `fidelity_table_command`. Measures are those of the annotate stage's `fidelity`, which is never imported here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.command import read_document
from ..core.errors import DataError
from .results import numbers_of
from .style import BLUE, ORANGE, SMALL_PT, page, save, styled, words

COUNTS = ("annotator", "labels", "label_mass", "labeled", "unreadable", "photographs", "crops")
JOBS = ("shards", "hours", "images_per_s", "bytes_per_image", "devices")  # of the shards' own summaries
ENDS = {"mean": "", "low": "_low", "high": "_high"}  # of an interval -> what a column's name ends in
REMEDY = "Delete it and run snakemake."
PANELS = {"cosine": "cosine", "top1_agreement": "top-1 agreement", "kl": "KL (nats)"}


def read_fidelity(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads the measurements, in order.

    Raises:
        DataError: one is missing, or no such measurement.
    """
    found = [read_document(path, "the fidelity of labels") for path in paths]
    for path, entry in zip(paths, found, strict=True):
        if not _is_measurement(entry, found[0]):
            raise DataError(f"{path}: no measurement of label fidelity. {REMEDY}")
        for name, value in numbers_of(entry):
            if not math.isfinite(value):
                raise DataError(f"{path}: {name} is {value}, which is no measurement. {REMEDY}")
    return found


def _is_measurement(entry: dict[str, Any], first: dict[str, Any]) -> bool:
    """Whether everything that table and figure read of it is there, as in the first one."""
    measures, entropy = entry.get("measures"), entry.get("entropy")
    if not isinstance(measures, dict) or not isinstance(entropy, dict) or not set(COUNTS) <= entry.keys():
        return False
    names = {*PANELS, "cell_entropy", *first["measures"]}
    ends = [
        measures.get(name, {}).get(end) for name in names for end in ENDS if isinstance(measures.get(name, {}), dict)
    ]
    share = entropy.get("share")
    numbers = [*ends, entropy.get("highest"), *(share if isinstance(share, list) and share else [None])]
    return len(ends) == len(names) * len(ENDS) and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers
    )


def fidelity_csv(found: Sequence[dict[str, Any]]) -> str:
    """Comma-separated text: counts, then mean, low and high of each measure, four decimals."""
    out = io.StringIO()
    names = list(found[0]["measures"])
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COUNTS, *JOBS, *(f"{name}{end}" for name in names for end in ENDS.values())])
    for entry in found:
        measured = [f"{entry['measures'][name][end]:.4f}" for name in names for end in ENDS]
        jobs = [entry.get("jobs", {}).get(name) for name in JOBS]
        writer.writerow([*(entry[name] for name in COUNTS), *jobs, *measured])
    return out.getvalue()


def draw_fidelity(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws a line per annotator: the three measures with their intervals, and how uncertain its cells are."""
    places = np.arange(len(found))[::-1]
    counts = sorted({f"{entry['photographs']} photographs x {entry['crops']} crops" for entry in found})
    masses = sorted({entry["label_mass"] for entry in found})
    notes = [f"{', '.join(counts)}; label mass {', '.join(masses)}; bars: 95 % bootstrap intervals over photographs."]
    notes.append("Right: entropy of a map's cells; upright line: mean, %: share in the fullest bin.")
    title = "Stored label, aligned to a crop, against the annotator on that crop"
    with styled():
        figure = page(0.8 + 0.55 * len(found), [title], notes)
        panels = figure.subplots(1, 4, sharey=True, width_ratios=[1, 1, 1, 2])
        for axes, (name, words_for) in zip(panels, PANELS.items(), strict=False):
            measured = [entry["measures"][name] for entry in found]
            means = np.array([value["mean"] for value in measured])
            ends = np.array([[value["low"], value["high"]] for value in measured]).T
            axes.errorbar(means, places, xerr=np.abs(ends - means), fmt="o", color=BLUE, capsize=2, markersize=4)
            axes.set_xlabel(words_for)
            axes.margins(x=0.15)
        histograms = panels[-1]
        tallest = max(max(entry["entropy"]["share"]) for entry in found)
        for entry, place in zip(found, places, strict=True):
            share = np.array(entry["entropy"]["share"])
            edges = np.linspace(0, entry["entropy"]["highest"], len(share) + 1)
            histograms.stairs(
                place - 0.4 + 0.8 * share / tallest, edges, baseline=place - 0.4, fill=True, color=BLUE, alpha=0.6
            )
            mean = entry["measures"]["cell_entropy"]["mean"]
            fullest = int(share.argmax())
            right = edges[fullest] > edges[-1] / 2  # the note stands on the side with more room
            histograms.annotate(
                f"{share[fullest]:.0%}", (edges[fullest + (not right)], place + 0.8 * share[fullest] / tallest - 0.4),
                xytext=(-3 if right else 3, 0), textcoords="offset points", va="top", fontsize=SMALL_PT,
                ha="right" if right else "left",
            )  # fmt: skip
            histograms.plot([mean, mean], [place - 0.4, place + 0.4], color=ORANGE, linewidth=1.5, marker="")
        histograms.set_xlabel("entropy of a cell (nats)")
        histograms.grid(visible=False, axis="y")
        histograms.set_xlim(0, max(entry["entropy"]["highest"] for entry in found))
        panels[0].set_yticks(places, [words(entry["annotator"]) for entry in found])
        panels[0].set_ylim(-0.6, len(found) - 0.4)
        save(figure, path)
