"""Result tables: one row per setting, ours beside the paper's, and what makes the two incomparable.

Reads evaluations by the paths in a table's plan. A row that was run with a cap is marked and has no difference to the
paper, because a capped run is another experiment.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.benchmarks import gpu_hours
from ..core.errors import DataError
from ..core.files import read_json


@dataclass(frozen=True)
class ResultRow:
    """One line of a table; None prints as an empty cell.

    Accuracies, ECE and agreement in percent, KL in nats, parameters in 10^6, gmacs in 10^9, GPU hours of one seed with the
    trainings that it starts from, mean over seeds.

    Attributes:
        state: done (all seeds), partial (some), planned (none: every measured cell is empty).
        seeds: finished, which is what mean and sd are over; seeds_planned: as the configuration says.
        capped: what a cap changed, "" where nothing: then there is no difference to the paper.
        test_sets: name of a further test set -> top-1; columns NAME_top1 of the CSV.
        weights_sha256: first 12 digits of each seed's checkpoint, in the order of seeds, joined by a blank.
    """

    name: str
    label: str
    state: str
    capped: str
    seeds: int
    seeds_planned: int
    top1_mean: float | None
    top1_sd: float | None
    paper_top1: float | None
    difference: float | None
    top5_mean: float | None
    real_top1_mean: float | None
    real_top1_sd: float | None
    paper_real_top1: float | None
    ece_mean: float | None
    parameters_m: float | None
    gmacs: float | None
    gpu_hours: float | None
    images_per_s: float | None
    peak_memory_mb: float | None
    model: str
    supervision: str | None
    annotator: str | None
    annotator_top1: float | None
    annotator_parameters_m: float | None
    participation: float | None
    image_px: int
    epochs: int
    class_top1_mean: float | None
    token_agreement_mean: float | None
    token_agreement_sd: float | None
    image_agreement_mean: float | None
    token_kl_mean: float | None
    val_images: int | None
    weights_sha256: str
    run: str
    test_sets: dict[str, float] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """top1_mean of a row that has one."""
        assert self.top1_mean is not None
        return self.top1_mean


def collect_rows(table: dict[str, Any], base: Path, *, complete: bool = True) -> list[ResultRow]:
    """Reads the evaluations of a table's plan.

    Args:
        table: as `Table.as_json` writes it.
        base: the folder that its paths are relative to.
        complete: False leaves out evaluations that do not exist yet; rows say so in `state`.

    Raises:
        DataError: an evaluation is missing, and `complete`.
    """
    return [_row(row, base, complete) for row in table["rows"]]


def _row(row: dict[str, Any], base: Path, complete: bool) -> ResultRow:
    results, hours = [], []
    for seed, path in row["seeds"].items():
        try:
            results.append(read_json(base / path))
        except FileNotFoundError:
            if complete:
                raise DataError(f"{base / path}: this evaluation is missing. Run snakemake for the table.") from None
            continue
        hours.append(gpu_hours(base, row["chain"], int(seed)))
    top1 = _mean(results, "top1")
    paper = row["paper_top1"]
    annotator = row["annotator"] or {}
    known = [spent for spent in hours if spent is not None]
    return ResultRow(
        name=row["name"],
        label=row["label"],
        state="planned" if not results else "done" if len(results) == len(row["seeds"]) else "partial",
        capped="; ".join(row["capped"]),
        seeds=len(results),
        seeds_planned=len(row["seeds"]),
        top1_mean=top1,
        top1_sd=_deviation(results, "top1"),
        paper_top1=paper,
        difference=top1 - paper if top1 is not None and paper is not None and not row["capped"] else None,
        top5_mean=_mean(results, "top5"),
        real_top1_mean=_mean(results, "real_top1"),
        real_top1_sd=_deviation(results, "real_top1"),
        paper_real_top1=row.get("paper_real_top1"),
        ece_mean=_mean(results, "ece"),
        parameters_m=_mean(results, "parameters_m"),
        gmacs=_mean(results, "gmacs"),
        gpu_hours=statistics.fmean(known) if known and len(known) == len(results) else None,
        images_per_s=_mean(results, "images_per_s"),
        peak_memory_mb=_mean(results, "peak_memory_mb"),
        model=row["model"],
        supervision=row["supervision"],
        annotator=annotator.get("name"),
        annotator_top1=annotator.get("paper_top1"),
        annotator_parameters_m=annotator.get("parameters_m"),
        participation=row["participation"],
        image_px=row["image_px"],
        epochs=row["epochs"],
        class_top1_mean=_mean(results, "class_top1"),
        token_agreement_mean=_mean(results, "token_agreement"),
        token_agreement_sd=_deviation(results, "token_agreement"),
        image_agreement_mean=_mean(results, "image_agreement"),
        token_kl_mean=_mean(results, "token_kl"),
        val_images=results[0]["val_images"] if results else None,
        weights_sha256=" ".join(result["weights_sha256"][:12] for result in results if "weights_sha256" in result),
        run=row["run"],
    )


def _mean(results: Sequence[dict[str, Any]], name: str) -> float | None:
    """None where an evaluation did not measure it."""
    measured = results and all(name in result for result in results)
    return statistics.fmean(result[name] for result in results) if measured else None


def _deviation(results: Sequence[dict[str, Any]], name: str) -> float | None:
    measured = len(results) > 1 and all(name in result for result in results)
    return statistics.stdev(result[name] for result in results) if measured else None


def as_csv(rows: Sequence[ResultRow]) -> str:
    """Comma-separated text with a header; floats with two decimals (participation as it is)."""
    out = io.StringIO()
    test_sets = sorted({name for row in rows for name in row.test_sets})
    columns = [column.name for column in fields(ResultRow) if column.name != "test_sets"]
    writer = csv.DictWriter(out, [*columns, *(f"{name}_top1" for name in test_sets)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {name: getattr(row, name) for name in columns}
        values |= {f"{name}_top1": row.test_sets.get(name) for name in test_sets}
        writer.writerow({name: _cell(name, value) for name, value in values.items()})
    return out.getvalue()


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) and name != "participation" else value
