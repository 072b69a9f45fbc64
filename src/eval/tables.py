"""Result tables: one row per setting, ours beside the paper's, and what makes the two incomparable.

Reads evaluations by the paths in a table's plan. A row that was run with a cap is marked and has no difference to the
paper, because a capped run is another experiment.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import read_json


@dataclass(frozen=True)
class ResultRow:
    """One line of a table; None prints as an empty cell.

    Accuracies and agreement in percent, KL in nats, parameters in 10^6, gmacs in 10^9.
    """

    name: str
    label: str
    annotator: str | None
    annotator_top1: float | None
    annotator_parameters_m: float | None
    participation: float
    image_px: int
    epochs: int
    seeds: int
    top1_mean: float
    top1_sd: float | None
    top5_mean: float
    paper_top1: float | None
    difference: float | None
    class_top1_mean: float | None
    token_agreement_mean: float | None
    token_agreement_sd: float | None
    image_agreement_mean: float | None
    token_kl_mean: float | None
    parameters_m: float
    gmacs: float
    val_images: int
    train_seconds: float
    capped: str
    run: str


def collect_rows(table: dict[str, Any], base: Path) -> list[ResultRow]:
    """Reads the evaluations of a table's plan.

    Args:
        table: as `Table.as_json` writes it.
        base: the folder that its paths are relative to.

    Raises:
        DataError: an evaluation is missing.
    """
    return [_row(row, base) for row in table["rows"]]


def _row(row: dict[str, Any], base: Path) -> ResultRow:
    results = []
    for path in row["seeds"].values():
        try:
            results.append(read_json(base / path))
        except FileNotFoundError:
            raise DataError(f"{base / path}: this evaluation is missing. Run snakemake for the table.") from None
    top1 = [result["top1"] for result in results]
    mean = statistics.fmean(top1)
    paper = row["paper_top1"]
    annotator = row["annotator"] or {}
    return ResultRow(
        name=row["name"],
        label=row["label"],
        annotator=annotator.get("name"),
        annotator_top1=annotator.get("paper_top1"),
        annotator_parameters_m=annotator.get("parameters_m"),
        participation=row["participation"],
        image_px=row["image_px"],
        epochs=row["epochs"],
        seeds=len(results),
        top1_mean=mean,
        top1_sd=statistics.stdev(top1) if len(top1) > 1 else None,
        top5_mean=statistics.fmean(result["top5"] for result in results),
        class_top1_mean=_mean(results, "class_top1"),
        token_agreement_mean=_mean(results, "token_agreement"),
        token_agreement_sd=_deviation(results, "token_agreement"),
        image_agreement_mean=_mean(results, "image_agreement"),
        token_kl_mean=_mean(results, "token_kl"),
        paper_top1=paper,
        difference=mean - paper if paper is not None and not row["capped"] else None,
        parameters_m=results[0]["parameters_m"],
        gmacs=results[0]["gmacs"],
        val_images=results[0]["val_images"],
        train_seconds=statistics.fmean(result["train_seconds"] for result in results),
        capped="; ".join(row["capped"]),
        run=row["run"],
    )


def _mean(results: Sequence[dict[str, Any]], name: str) -> float | None:
    """None where an evaluation did not measure it."""
    return statistics.fmean(result[name] for result in results) if all(name in result for result in results) else None


def _deviation(results: Sequence[dict[str, Any]], name: str) -> float | None:
    measured = len(results) > 1 and all(name in result for result in results)
    return statistics.stdev(result[name] for result in results) if measured else None


def as_csv(rows: Sequence[ResultRow]) -> str:
    """Comma-separated text with a header; floats with two decimals (participation as it is)."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(ResultRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(name, value) for name, value in asdict(row).items()})
    return out.getvalue()


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) and name != "participation" else value
