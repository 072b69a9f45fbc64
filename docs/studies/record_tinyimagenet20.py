"""Records the finished study of docs/studies/tinyimagenet20.md: a CSV of its runs, the lines of the page's tables, the figure.

usage: python docs/studies/record_tinyimagenet20.py FOLDER...   # of a study each: one for every training-set size

The CSV beside this file is the record; tables and figure follow from it alone. Runs of a student and a size that no folder holds
stay. Two errors stand beside each paired difference: over seeds (Student's t, 95 %) and over photographs (bootstrap, 95 %);
chance has to be excluded by both.
"""

from __future__ import annotations

import csv
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is where Python looks

from bench.record import ResultLines
from docs.studies.paired_seeds import Row, by_arm, deviation, pair_up, t_reach, write_rows
from tokenlabel.core.files import read_json
from tokenlabel.core.planned import Run
from tokenlabel.core.study import Study
from tokenlabel.eval.agreement import unpack_right

HERE = Path(__file__).resolve().parent
CSV, FIGURE = HERE / "tinyimagenet20.csv", HERE / "tinyimagenet20.png"
PAIRS = (
    ("relabel", "hard"), ("token", "hard"), ("token_20", "hard"), ("token_own", "hard"), ("token_half", "hard"),
    ("token", "relabel"), ("token_half", "relabel"), ("token_20", "token"),
)  # fmt: skip
MEANS = ("top1", "class_top1", "token_agreement", "image_agreement", "token_kl")
MEASURES = {"top1": "top-1 %", "token_agreement": "tokens that agree %"}
RESAMPLES = 10_000
NUMBERS = ("train_images", "parameters_k", "seed", "epochs", "val_images", "train_seconds")


def collect_runs(folder: Path) -> Iterator[Row]:
    """One row for every run of a study that has been evaluated."""
    study = Study.plan(read_json(folder / "results" / "study.json"))
    seen = set()
    for table in study.selected_tables:
        for row, seed in itertools.product(table.rows, table.seeds):
            if not isinstance(row.run, Run) or (row.name, seed) in seen or not (folder / row.run.result(seed)).exists():
                continue
            seen.add((row.name, seed))
            measured = read_json(folder / row.run.result(seed))
            epochs = (folder / row.run.done(seed)).with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
            last = [line for line in map(json.loads, epochs) if "step" not in line][-1]
            yield {
                "train_images": study.config.dataset.train_images, "parameters_k": round(1000 * measured["parameters_m"]),
                "arm": row.name, "label": row.label, "seed": seed,
                "epochs": row.run.spec["recipe"]["epochs"], "top1": round(measured["top1"], 3),
                "class_top1": round(measured["class_top1"], 3), "token_head": measured["token_head"],
                "token_agreement": round(measured["token_agreement"], 3),
                "image_agreement": round(measured["image_agreement"], 3), "token_kl": round(measured["token_kl"], 4),
                "class_loss": round(last["class_loss"], 4),
                "token_loss": round(last["token_loss"], 4) if "token_loss" in last else "",
                "train_seconds": round(measured["train_seconds"]), "val_images": measured["val_images"],
                "right": measured["right"],
            }  # fmt: skip


def read_runs(path: Path = CSV) -> list[Row]:
    """The rows of the CSV, numbers as numbers."""
    with open(path, encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        for name in NUMBERS:
            row[name] = int(row[name])
        for name in ("top1", "class_top1", "token_agreement", "image_agreement", "token_kl", "class_loss"):
            row[name] = float(row[name])
    return rows


def summarise(rows: list[Row]) -> Iterator[Row]:
    """The lines of the page's tables: every arm, then every pair of arms over the seeds that both have."""
    for design in sorted({_design(row) for row in rows}):
        parameters_k, images = design
        about = {"train_images": images, "parameters_k": parameters_k}
        arms = by_arm(row for row in rows if _design(row) == design)
        for arm in arms.values():
            runs = list(arm.values())
            yield {
                "kind": "arm", **about, "arm": runs[0]["arm"], "row": runs[0]["label"], "runs": len(runs),
                "epochs": runs[0]["epochs"],
                **{f"{name}_mean": _mean(runs, name) for name in MEANS},
                **{f"{name}_sd": deviation([run[name] for run in runs]) for name in MEASURES},
                "head": runs[0]["token_head"],
            }  # fmt: skip
        for (one, other), measure in itertools.product(PAIRS, MEASURES):
            pairs = pair_up(arms, one, other)
            if not pairs:
                continue
            differences = [a[measure] - b[measure] for a, b in pairs]
            mean, reach = statistics.fmean(differences), t_reach(differences)
            photographs = bootstrapped(pairs) if measure == "top1" else (None, None)
            yield {
                "kind": "pair", **about, "pair": f"{pairs[0][0]['label']} - {pairs[0][1]['label']}", "arm": one,
                "over": other, "measure": MEASURES[measure], "field": measure, "runs": len(pairs), "mean": mean,
                "low": mean - reach, "high": mean + reach, "photographs_low": photographs[0],
                "photographs_high": photographs[1],
            }  # fmt: skip


def _design(row: Row) -> tuple[int, int]:
    """What runs must share to be compared: the student, by its parameters, and the training photographs."""
    return row["parameters_k"], row["train_images"]


def _mean(runs: list[Row], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


def bootstrapped(pairs: list[tuple[Row, Row]]) -> tuple[float, float]:
    """Ends of the 95 % interval over photographs of the mean difference in top-1, in points; the seeds as they are."""
    count = pairs[0][0]["val_images"]
    right = [[unpack_right(row["right"], count).astype(np.float64) for row in pair] for pair in pairs]
    per_photograph = np.mean([one - other for one, other in right], axis=0)
    rng = np.random.default_rng(0)
    means = [per_photograph[rng.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = 100 * np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def draw(rows: list[Row], path: Path) -> None:
    """Top-1 of every run, the paired differences from own labels, and the tokens that agree: a line of panels for each student."""
    import matplotlib.pyplot as plt

    from tokenlabel.eval.style import STYLE

    sizes = sorted({row["train_images"] for row in rows})
    students = sorted({row["parameters_k"] for row in rows}, reverse=True)
    arms = [len({row["arm"] for row in rows if row["parameters_k"] == student}) for student in students]
    with plt.rc_context({**STYLE, "savefig.bbox": "tight"}):
        figure, panels = plt.subplots(
            len(students),
            3,
            figsize=(10.5, sum(1.0 + 0.6 * count for count in arms)),
            sharey="row",
            sharex="col",
            squeeze=False,
            gridspec_kw={"height_ratios": arms},
        )
        for line, student in zip(panels, students, strict=True):
            _draw_student([row for row in rows if row["parameters_k"] == student], sizes, line)
        accuracy, difference, agreement = panels[-1]
        accuracy.set_xlabel("top-1 (%)\nevery run; bar: mean")
        difference.set_xlabel("top-1 above own labels (points)\n95 %: line seeds, band photographs")
        agreement.set_xlabel("tokens that agree with the annotator (%)\nx: if all said the photograph's class")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def _draw_student(rows: list[Row], sizes: list[int], panels: Any) -> None:
    from tokenlabel.eval.style import BLUE, GREY, ORANGE

    lines = list(summarise(rows))
    arms = [line for line in lines if line["kind"] == "arm"]
    labels = {line["arm"]: line["row"].replace(", ", ",\n").replace(" beside ", "\nbeside ") for line in arms}
    place = {arm: -float(number) for number, arm in enumerate(labels)}
    accuracy, difference, agreement = panels
    for images, colour, marker, shift in zip(sizes, (ORANGE, BLUE), "so", (0.14, -0.14), strict=False):
        if images not in {row["train_images"] for row in rows}:
            continue
        of_size = [line for line in arms if line["train_images"] == images]
        epochs = of_size[0]["epochs"]
        for axes, field in ((accuracy, "top1"), (agreement, "token_agreement")):
            runs = [(row[field], place[row["arm"]] + shift) for row in rows if row["train_images"] == images]
            axes.plot(*zip(*runs, strict=True), marker, color=colour, markersize=4, alpha=0.5, markeredgewidth=0)
            means = [(line[f"{field}_mean"], place[line["arm"]] + shift) for line in of_size]
            name = f"{images:,} photographs, {epochs} epochs"
            axes.plot(*zip(*means, strict=True), "|", color=colour, markersize=13, label=name)
        floor = [(line["image_agreement_mean"], place[line["arm"]] + shift) for line in of_size]
        agreement.plot(*zip(*floor, strict=True), "x", color=colour, markersize=5)
        for line in lines:
            if (line.get("over"), line.get("field"), line["train_images"]) == ("hard", "top1", images):
                height, reach = place[line["arm"]] + shift, line["high"] - line["mean"]
                difference.errorbar(
                    line["mean"], height, xerr=reach, fmt=marker, color=colour, markersize=5, capsize=3, linewidth=1.2
                )
                band = (line["photographs_low"], line["photographs_high"])
                difference.plot(
                    band, (height, height), color=colour, linewidth=6, alpha=0.25, solid_capstyle="butt", marker=""
                )
    difference.axvline(0, color=GREY, linewidth=1)
    accuracy.set_yticks(list(place.values()), list(labels.values()))
    accuracy.set_ylim(0.6 - len(labels), 0.6)
    accuracy.set_title(f"student of {rows[0]['parameters_k']:,},000 parameters", loc="left", fontsize=9)
    handles, names = accuracy.get_legend_handles_labels()
    legend = difference.legend(
        handles, names, frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2
    )
    legend.set_in_layout(False)  # it may reach over the next panel


def main(folders: list[Path]) -> None:
    """Writes CSV, lines and figure."""
    rows: list[Row] = [row for folder in folders for row in collect_runs(folder)]
    made = {_design(row) for row in rows}
    rows += [row for row in read_runs() if _design(row) not in made]
    write_rows(CSV, rows)
    rows = read_runs()
    lines = ResultLines("tinyimagenet20", fresh=True)
    for line in summarise(rows):
        lines.add(**line)
    draw(rows, FIGURE)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
