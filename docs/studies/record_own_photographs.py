"""Copies the finished study of docs/own-photographs.md into bench/results, from which docs/tables.py makes the page's table.

usage: python docs/studies/record_own_photographs.py FOLDER_OF_THE_STUDY
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, this folder is where Python looks

from bench.record import ResultLines


def main(folder: Path) -> None:
    """Writes one line for each row of the study's table."""
    lines = ResultLines("own_photographs", fresh=True)
    with open(folder / "results" / "own_photographs.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            lines.add(
                row=row["label"],
                top1=float(row["top1_mean"]),
                sd=float(row["top1_sd"]) if row["top1_sd"] else None,
                runs=int(row["seeds"]),
                epochs=int(row["epochs"]),
                image_px=int(row["image_px"]),
                val_images=int(row["val_images"]),
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
