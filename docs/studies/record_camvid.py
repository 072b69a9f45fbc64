"""Records the finished study of docs/studies/camvid.md: a CSV of its runs, the lines of the page's tables, a figure, the views.

usage: python docs/studies/record_camvid.py FOLDER   # of the study, with its results/

The CSV beside this file is the record; tables and figure follow from it alone. camvid_views.jpg needs the checkpoints and the
photographs, and is left as it is where they are not there. Every difference is taken within a seed; its interval is over seeds
(Student's t, 95 %). None over photographs is given: the 101 held-out ones are seven seconds of one drive.
"""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is where Python looks

from bench.record import ResultLines
from docs.studies.paired_seeds import FEWEST, Row, by_arm, deviation, pair_up, t_reach, write_rows
from tokenlabel.core.files import read_json
from tokenlabel.core.study import Study

HERE = Path(__file__).resolve().parent
CSV, FIGURE, VIEWS = HERE / "camvid.csv", HERE / "camvid.png", HERE / "camvid_views.jpg"
EXPERIMENT = "camvid"
PAIRS = (("token", "hard"), ("hard", "random"), ("token", "random"))
MEASURES = {
    "miou": "mIoU", "pixel_accuracy": "pixel accuracy", "miou_multi": "mIoU, multi-scale",
    "pixel_accuracy_multi": "pixel accuracy, multi-scale",
}  # fmt: skip
CLASS = "iou "  # before a class's name in a column of the CSV
VIEWED, JPEG_QUALITY = (0, 33, 66, 100), 80  # photographs of the views: evenly over the held-out ones


def collect_runs(folder: Path) -> Iterator[Row]:
    """One row for every run of the study that has been evaluated."""
    study = Study.plan(read_json(folder / "results" / "study.json"))
    table = study.segmentation_tables[EXPERIMENT]
    for row, seed in itertools.product(table.rows, table.seeds):
        if not (folder / row.run.result(seed)).exists():
            continue
        measured = read_json(folder / row.run.result(seed))
        yield {
            "arm": row.name, "label": row.label, "seed": seed, "iterations": row.run.spec["recipe"]["iterations"],
            **{name: round(measured["single"][name], 3) for name in ("miou", "pixel_accuracy")},
            **{f"{name}_multi": round(measured["multi"][name], 3) for name in ("miou", "pixel_accuracy")},
            **{CLASS + found["name"]: "" if found["iou"] is None else round(found["iou"], 3) for found in measured["classes"]},
            "images": measured["images"], "parameters_k": round(1000 * measured["parameters_m"]),
            "train_seconds": round(measured["train_seconds"]), "evaluation_seconds": round(measured["seconds"]),
        }  # fmt: skip


def read_runs(path: Path = CSV) -> list[Row]:
    """The rows of the CSV, numbers as numbers; a class that was nowhere is None."""
    with open(path, encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        for name in ("seed", "iterations", "images", "parameters_k", "train_seconds", "evaluation_seconds"):
            row[name] = int(row[name])
        for name in (*MEASURES, *_class_columns(row)):
            row[name] = float(row[name]) if row[name] != "" else None
    return rows


def summarise(rows: list[Row]) -> Iterator[Row]:
    """The lines of the page's tables: every arm, every pair of arms over the seeds that both have, every class."""
    arms = by_arm(rows)
    for arm in arms.values():
        runs = list(arm.values())
        yield {
            "kind": "arm", "arm": runs[0]["arm"], "row": runs[0]["label"], "runs": len(runs),
            "iterations": runs[0]["iterations"],
            **{f"{name}_mean": statistics.fmean(run[name] for run in runs) for name in MEASURES},
            **{f"{name}_sd": deviation([run[name] for run in runs]) for name in MEASURES},
            "train_seconds": statistics.fmean(run["train_seconds"] for run in runs),
        }  # fmt: skip
    for (one, other), measure in itertools.product(PAIRS, MEASURES):
        pairs = pair_up(arms, one, other)
        if not pairs:
            continue
        differences = [a[measure] - b[measure] for a, b in pairs]
        mean, reach = statistics.fmean(differences), t_reach(differences)
        yield {
            "kind": "pair", "pair": f"{pairs[0][0]['label']} - {pairs[0][1]['label']}", "arm": one, "over": other,
            "measure": MEASURES[measure], "field": measure, "runs": len(pairs), "mean": mean, "low": mean - reach,
            "high": mean + reach, "above": sum(difference > 0 for difference in differences),
        }  # fmt: skip
    for column in _class_columns(rows[0]):
        means = {arm: _mean(runs.values(), column) for arm, runs in arms.items()}
        differences = [
            a[column] - b[column]
            for a, b in pair_up(arms, "token", "hard")
            if a[column] is not None and b[column] is not None
        ]
        enough = len(differences) >= FEWEST
        reach = t_reach(differences) if enough else None
        mean = statistics.fmean(differences) if enough else None
        yield {
            "kind": "class", "class": column.removeprefix(CLASS), **{arm: means.get(arm) for arm in ("random", "hard", "token")},
            "mean": mean, "low": mean - reach if enough else None, "high": mean + reach if enough else None,
        }  # fmt: skip


def _class_columns(row: Row) -> list[str]:
    return [name for name in row if name.startswith(CLASS)]


def _mean(runs: Any, name: str) -> float | None:
    found = [run[name] for run in runs if run[name] is not None]
    return statistics.fmean(found) if found else None


def draw(rows: list[Row], path: Path) -> None:
    """mIoU of every run, the paired differences, and the classes' IoU, each arm in one colour."""
    import matplotlib.pyplot as plt

    from tokenlabel.eval.style import BLUE, GREEN, GREY, ORANGE, STYLE

    lines = list(summarise(rows))
    arms = [line for line in lines if line["kind"] == "arm"]
    pairs = [line for line in lines if line["kind"] == "pair" and line["field"] == "miou"]
    classes = sorted((line for line in lines if line["kind"] == "class"), key=lambda line: -(line["token"] or 0))
    colours = dict(zip(("random", "hard", "token"), (GREY, ORANGE, BLUE), strict=True))
    with plt.rc_context({**STYLE, "savefig.bbox": "tight"}):
        figure, (runs, difference, by_class) = plt.subplots(
            1, 3, figsize=(10.5, 3.2), gridspec_kw={"width_ratios": (1, 1, 1.5)}, layout="constrained"
        )
        for place, arm in enumerate(arms):
            values = [row["miou"] for row in rows if row["arm"] == arm["arm"]]
            runs.plot(
                values,
                [-place] * len(values),
                "o",
                color=colours[arm["arm"]],
                markersize=5,
                alpha=0.6,
                markeredgewidth=0,
            )
            runs.plot([arm["miou_mean"]], [-place], "|", color=colours[arm["arm"]], markersize=18)
        runs.set_yticks([-place for place in range(len(arms))], [arm["row"].replace(" ", "\n", 1) for arm in arms])
        runs.set_ylim(0.6 - len(arms), 0.6)
        runs.set_xlabel("mIoU, single scale (%)\nevery run; bar: mean")
        for place, pair in enumerate(pairs):
            difference.errorbar(
                pair["mean"],
                -place,
                xerr=pair["high"] - pair["mean"],
                fmt="o",
                color=GREEN,
                markersize=5,
                capsize=3,
                linewidth=1.2,
            )
        difference.axvline(0, color=GREY, linewidth=1)
        difference.set_yticks(
            [-place for place in range(len(pairs))], [pair["pair"].replace(" - ", "\n- ") for pair in pairs]
        )
        difference.set_ylim(0.6 - max(len(pairs), 1), 0.6)
        difference.set_xlabel("mIoU, paired by seed (points)\n95 % over seeds")
        for arm in arms:
            found = [(line[arm["arm"]], -place) for place, line in enumerate(classes) if line[arm["arm"]] is not None]
            by_class.plot(*zip(*found, strict=True), "o", color=colours[arm["arm"]], markersize=4, label=arm["row"])
        by_class.set_yticks([-place for place in range(len(classes))], [line["class"] for line in classes])
        by_class.set_xlabel("IoU, single scale (%)\nmean of the seeds")
        by_class.legend(frameon=False, fontsize=7, loc="lower right")
        figure.savefig(path)
        plt.close(figure)


def draw_views(folder: Path, path: Path) -> None:
    """Photograph, mask, and each arm's segmentation (first seed) of four held-out photographs, as one JPEG."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

    from tokenlabel.data.scene_pictures import largest_classes, lay_classes, with_legend
    from tokenlabel.data.scenes import load_scene_manifest
    from tokenlabel.eval.visualisation import segment_photographs
    from tokenlabel.models.segmentation import load_segmenter

    study = Study.plan(read_json(folder / "results" / "study.json"))
    table, machine = study.segmentation_tables[EXPERIMENT], read_json(folder / "results" / "machine.json")
    manifest = load_scene_manifest(folder / table.rows[0].run.scenes.folder, "val")
    scenes, root = manifest.open(machine), Path(machine["segmentation_root"]) / machine["scenes"]["val"]["images"]
    chosen = [number for number in VIEWED if number < len(manifest)]
    titles, columns, masks = ["photograph", "mask"], [[], []], []
    for number in chosen:
        scene = scenes.read(number)
        photograph, mask = Image.fromarray(scene.image.permute(1, 2, 0).numpy()), scene.mask.numpy()
        columns[0].append(photograph)
        columns[1].append(lay_classes(photograph, mask, len(manifest.classes)))
        masks.append(mask)
    for row in table.rows:
        segmenter = load_segmenter((folder / row.run.done(table.seeds[0])).parent)
        paths = [root / manifest.image_paths[number] for number in chosen]
        found = segment_photographs(segmenter, paths, device=torch.device("cpu"))
        titles.append(row.label)
        columns.append([lay_classes(photograph, mask, len(manifest.classes)) for photograph, mask in found])
    width, height = 300, round(300 * columns[0][0].height / columns[0][0].width)
    page = Image.new("RGB", ((width + 4) * len(columns), 24 + (height + 4) * len(chosen)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for place, (title, column) in enumerate(zip(titles, columns, strict=True)):
        pen.text((place * (width + 4) + 2, 4), title, fill="black", font=font)
        for line, picture in enumerate(column):
            page.paste(picture.resize((width, height)), (place * (width + 4), 24 + line * (height + 4)))
    named = list(largest_classes([np.stack(masks)], len(manifest.classes), len(manifest.classes)))
    with_legend(page, named, manifest.classes).save(path, quality=JPEG_QUALITY)


def main(folder: Path) -> None:
    """Writes CSV, lines, figure and views."""
    rows = list(collect_runs(folder))
    write_rows(CSV, rows)
    rows = read_runs()
    lines = ResultLines("camvid", fresh=True)
    for line in summarise(rows):
        lines.add(**line)
    draw(rows, FIGURE)
    draw_views(folder, VIEWS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
