"""Result tables: one row per setting, ours beside the paper's, and what makes the two incomparable.

Reads evaluations by the paths in a table's plan; `results` refuses those that are damaged or of another run. A row that was run
with a cap, or on other photographs, has no difference to the paper, because it is another experiment. Called by the table commands.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.benchmarks import gpu_hours
from ..core.errors import DataError
from ..core.files import read_json
from ..core.paper import DATASET
from .results import check_seeds_agree, check_seeds_differ, read_result, read_seeds


@dataclass(frozen=True)
class ResultRow:
    """One line of a table; None prints as an empty cell.

    Accuracies, ECE and agreement in percent, KL in nats, parameters in 10^6, gmacs in 10^9, GPU hours of one seed with the
    trainings that it starts from, mean over seeds.

    Attributes:
        state: done (all seeds), partial (some), planned (none: every measured cell is empty).
        seeds: finished, which is what mean and sd are over; seeds_planned: as the configuration says.
        capped: what a cap changed, "" where nothing.
        difference: top1_mean - paper_top1; None for a capped row and on other photographs than the paper's: other experiments.
        test_sets: name of a further test set -> top-1; columns NAME_top1 of the CSV.
        weights_sha256: first 12 digits of each seed's checkpoint, in the order of seeds, joined by a blank.
        paper_source: where the paper's accuracy stands, or that it is drawn only; configuration: a user's own number.
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
    paper_parameters_m: float | None = None
    paper_gmacs: float | None = None
    paper_source: str | None = None

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
        complete: False leaves out evaluations that do not exist yet; rows say so in `state`. A damaged one is refused all the same.

    Raises:
        DataError: an evaluation is damaged or of another run; two rows have one name, two seeds one checkpoint; one is missing,
            and `complete`.
    """
    names = Counter(row["name"] for row in table["rows"])
    doubled = [name for name, count in names.items() if count > 1]
    if doubled:
        raise DataError(
            f"table {table['name']}: {names[doubled[0]]} rows are called {doubled[0]!r}. Give each row a name of its own in the "
            "configuration and run snakemake again."
        )
    return [_row(row, table.get("dataset"), base, complete) for row in table["rows"]]


def _row(row: dict[str, Any], dataset: str | None, base: Path, complete: bool) -> ResultRow:
    measured = _measured(row, base, complete)
    # an annotator alone has one evaluation for all seeds, which counts once
    results = list({row["seeds"][seed]: result for seed, result in measured.items()}.values())
    top1 = _mean(results, "top1")
    annotator = row["annotator"] or {}
    return ResultRow(
        name=row["name"],
        label=row["label"],
        state="planned" if not results else "done" if len(measured) == len(row["seeds"]) else "partial",
        capped="; ".join(row["capped"]),
        seeds=len(measured),
        seeds_planned=len(row["seeds"]),
        top1_mean=top1,
        top1_sd=_deviation(results, "top1"),
        paper_top1=row["paper_top1"],
        difference=_difference(row, top1, dataset),
        top5_mean=_mean(results, "top5"),
        real_top1_mean=_mean(results, "real_top1"),
        real_top1_sd=_deviation(results, "real_top1"),
        paper_real_top1=row.get("paper_real_top1"),
        ece_mean=_mean(results, "ece"),
        parameters_m=_mean(results, "parameters_m"),
        gmacs=_mean(results, "gmacs"),
        gpu_hours=_gpu_hours(row, measured, base),
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
        weights_sha256=" ".join(dict.fromkeys(result["weights_sha256"][:12] for result in results)),
        run=row["run"],
        test_sets=_test_sets(results),
        paper_parameters_m=row.get("paper_parameters_m"),
        paper_gmacs=row.get("paper_gmacs"),
        paper_source=row.get("paper_source"),
    )


def _measured(row: dict[str, Any], base: Path, complete: bool) -> dict[str, dict[str, Any]]:
    """Seed -> evaluation, of those that exist."""
    found = read_seeds(row, base, complete, read_result)
    by_path = {base / row["seeds"][seed]: result for seed, result in found.items()}
    check_seeds_differ(by_path)
    check_seeds_agree(by_path)
    return found


def _difference(row: dict[str, Any], top1: float | None, dataset: str | None) -> float | None:
    """Ours minus the paper's, where both are one experiment: uncapped, on the paper's data or against a user's own number."""
    expected = row["paper_top1"]
    comparable = dataset == DATASET or row.get("paper_source") == "configuration"
    return top1 - expected if top1 is not None and expected is not None and comparable and not row["capped"] else None


def _gpu_hours(row: dict[str, Any], measured: Iterable[str], base: Path) -> float | None:
    """Mean over the measured seeds; None where one has no record of what it cost."""
    hours = [
        [gpu_hours(base, [run], int(seed), gpus=_processes(base, run, seed)) for run in row["chain"]]
        for seed in measured
    ]
    spent = [sum(filter(None, chain)) for chain in hours if chain and None not in chain]
    return statistics.fmean(spent) if spent and len(spent) == len(hours) else None


def _processes(base: Path, run: str, seed: str) -> int:
    """Processes that a training ran in, each with a GPU of its own where there are any; 1 where its marker does not say."""
    try:
        return int(read_json(base / f"results/runs/{run}/seed{seed}/done.json")["processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _test_sets(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Name -> mean top-1 of those that every seed measured."""
    names = list(results[0].get("test_sets", {})) if results else []
    return {
        name: statistics.fmean(result["test_sets"][name]["top1"] for result in results)
        for name in names
        if all(name in result.get("test_sets", {}) for result in results)
    }


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
