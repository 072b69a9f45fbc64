"""Tables of segmentation: one row per setting, ours beside the paper's, with the gain over the row that it is compared with.

Reads evaluations by the paths in a table's plan; `segmentation_results` refuses damaged ones. A gain is the mean of differences
of paired seeds. A capped row, or one of other scenes than ADE20K, has no difference to the paper. Called by the table command.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..core.benchmarks import gpu_hours
from ..core.paper import SCENES
from .markdown import format_table, one_line
from .results import read_seeds
from .segmentation_results import SegmentationResult, check_same_scenes, read_segmentation

MEASURES = ("miou_ss", "pixel_acc_ss", "miou_ms", "pixel_acc_ms")
TITLES = {
    "miou_ss": "mIoU (SS)", "pixel_acc_ss": "pixel acc. (SS)", "miou_ms": "mIoU (MS)", "pixel_acc_ms": "pixel acc. (MS)",
}  # fmt: skip


@dataclass(frozen=True)
class SegmentationResultRow:
    """One line of a table; None prints as an empty cell. Measures in percent, differences and gains in points.

    Attributes:
        state: done (all seeds), partial (some), planned (none), paper (of a method that nothing here trains).
        seeds: finished; seeds_planned: as the configuration says.
        *_mean, *_sd: over the finished seeds; ss at a single scale, ms multi-scale.
        difference_*: ours minus the paper's; None for a capped row and for other scenes than the paper's.
        against: row that the gains are over; gain_*: mean and standard deviation of the differences of gain_seeds paired seeds.
        gpu_hours: of one seed's training for segmentation, without the backbone's own.
    """

    name: str
    label: str
    state: str
    capped: str
    seeds: int
    seeds_planned: int
    miou_ss_mean: float | None
    miou_ss_sd: float | None
    paper_miou_ss: float | None
    difference_miou_ss: float | None
    pixel_acc_ss_mean: float | None
    pixel_acc_ss_sd: float | None
    paper_pixel_acc_ss: float | None
    difference_pixel_acc_ss: float | None
    miou_ms_mean: float | None
    miou_ms_sd: float | None
    paper_miou_ms: float | None
    difference_miou_ms: float | None
    pixel_acc_ms_mean: float | None
    pixel_acc_ms_sd: float | None
    paper_pixel_acc_ms: float | None
    difference_pixel_acc_ms: float | None
    against: str | None
    gain_seeds: int | None
    gain_miou_ss_mean: float | None
    gain_miou_ss_sd: float | None
    gain_miou_ms_mean: float | None
    gain_miou_ms_sd: float | None
    parameters_m: float | None
    paper_parameters_m: float | None
    gpu_hours: float | None
    model: str
    head: str
    backbone: str
    iterations: int | None
    crop_px: int | None
    images: int | None
    skipped: int | None
    run: str
    paper_source: str | None

    def mean(self, measure: str) -> float | None:
        """Mean of a measure over the finished seeds."""
        found: float | None = getattr(self, f"{measure}_mean")
        return found

    def deviation(self, measure: str) -> float | None:
        """Its standard deviation, from two seeds on."""
        found: float | None = getattr(self, f"{measure}_sd")
        return found

    def paper(self, measure: str) -> float | None:
        """The paper's number of a measure."""
        found: float | None = getattr(self, f"paper_{measure}")
        return found


def collect_segmentation(table: Mapping[str, Any], base: Path, *, complete: bool = True) -> list[SegmentationResultRow]:
    """Reads the evaluations of a table's plan: our rows, then those of the paper alone.

    Args:
        table: as `SegmentationTable.as_json` writes it.
        base: the folder that its paths are relative to.
        complete: False leaves out evaluations that do not exist yet; rows say so in `state`.

    Raises:
        DataError: an evaluation is damaged or of another run; one is missing, and `complete`.
    """
    measured = {row["name"]: _measured(row, base, complete) for row in table["rows"]}
    rows = [_row(row, measured, table["dataset"], base) for row in table["rows"]]
    return rows + [_paper_row(found) for found in table["paper_only"]]


def _measured(row: Mapping[str, Any], base: Path, complete: bool) -> dict[str, SegmentationResult]:
    """Seed -> evaluation, of those that exist."""
    found = read_seeds(row, base, complete, read_segmentation)
    check_same_scenes({base / row["seeds"][seed]: result for seed, result in found.items()})
    return found


def _row(
    row: Mapping[str, Any], measured: Mapping[str, Mapping[str, SegmentationResult]], dataset: str, base: Path
) -> SegmentationResultRow:
    own = measured[row["name"]]
    results = list(own.values())
    comparable = dataset == SCENES and not row["capped"]
    numbers: dict[str, Any] = {}
    for measure in MEASURES:
        values = _values(results, measure)
        mean, expected = _mean(values), row["paper"][measure]
        numbers[f"{measure}_mean"], numbers[f"{measure}_sd"] = mean, _deviation(values)
        numbers[f"paper_{measure}"] = expected
        both = comparable and mean is not None and expected is not None
        numbers[f"difference_{measure}"] = mean - expected if both and mean is not None else None
    other = measured.get(row["against"]) if row["against"] else None
    pairs = [(own[seed], other[seed]) for seed in own if seed in other] if other else []
    for measure in ("miou_ss", "miou_ms"):
        here, there = (_values([pair[side] for pair in pairs], measure) for side in (0, 1))
        gains = [one - two for one, two in zip(here, there, strict=False)]  # none where a pair had nothing to measure
        numbers[f"gain_{measure}_mean"], numbers[f"gain_{measure}_sd"] = _mean(gains), _deviation(gains)
    hours = [gpu_hours(base, [row["run"]], int(seed), kind="segmentation") for seed in own]
    spent = [found for found in hours if found is not None]
    return SegmentationResultRow(
        name=row["name"],
        label=row["label"],
        state="planned" if not results else "done" if len(results) == len(row["seeds"]) else "partial",
        capped="; ".join(row["capped"]),
        seeds=len(results),
        seeds_planned=len(row["seeds"]),
        **numbers,
        against=row["against"],
        gain_seeds=len(pairs) if row["against"] else None,
        parameters_m=results[0].parameters_m if results else None,
        paper_parameters_m=row["paper"]["params_m"],
        gpu_hours=statistics.fmean(spent) if spent and len(spent) == len(hours) else None,
        model=row["model"],
        head=row["head"],
        backbone=row["backbone"],
        iterations=row["iterations"],
        crop_px=row["crop_px"],
        images=results[0].images if results else None,
        skipped=results[0].skipped if results else None,
        run=row["run"],
        paper_source=row["paper"]["source"],
    )


def _paper_row(found: Mapping[str, Any]) -> SegmentationResultRow:
    """A method that nothing here trains: the paper's numbers, every cell of ours empty."""
    name = found["reference"].partition("/")[2]
    cells: dict[str, Any] = dict.fromkeys((field.name for field in fields(SegmentationResultRow)), None)
    cells |= {
        "name": name, "label": name, "state": "paper", "capped": "", "seeds": 0, "seeds_planned": 0, "model": "", "head": "",
        "backbone": "", "run": "", "paper_parameters_m": found["params_m"], "paper_source": found["source"],
        **{f"paper_{measure}": found[measure] for measure in MEASURES},
    }  # fmt: skip
    return SegmentationResultRow(**cells)


def _values(results: Sequence[SegmentationResult], measure: str) -> list[float]:
    """Of all seeds; none where one had nothing to measure."""
    values = [getattr(result, measure) for result in results]
    return [] if None in values else values


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def as_csv(rows: Sequence[SegmentationResultRow]) -> str:
    """Comma-separated text with a header; floats with two decimals."""
    out = io.StringIO()
    columns = [column.name for column in fields(SegmentationResultRow)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (getattr(row, name) for name in columns)
        writer.writerow(
            ["" if value is None else f"{value:.2f}" if isinstance(value, float) else value for value in values]
        )
    return out.getvalue()


def as_markdown(table: Mapping[str, Any], rows: Sequence[SegmentationResultRow]) -> str:
    """The same as a page: ours beside the paper's numbers, gains, and the other methods of the paper's table."""
    ours = [row for row in rows if row.state != "paper"]
    others = [row for row in rows if row.state == "paper"]
    heading = ["setting", "state", "seeds"]
    for measure in MEASURES:
        heading += [TITLES[measure], "paper's"]
    heading += ["gain SS", "gain MS", "over", "M parameters", "paper's M", "GPU hours"]
    body = []
    labels = {row.name: row.label for row in ours}
    for row in ours:
        cells = [row.label, row.state, f"{row.seeds} of {row.seeds_planned}"]
        for measure in MEASURES:
            cells += [with_deviation(row.mean(measure), row.deviation(measure)), _printed(row.paper(measure))]
        cells += [
            with_deviation(row.gain_miou_ss_mean, row.gain_miou_ss_sd, sign="+"),
            with_deviation(row.gain_miou_ms_mean, row.gain_miou_ms_sd, sign="+"),
            labels[row.against] if row.against else "",
            "" if row.parameters_m is None else f"{row.parameters_m:.1f}",
            _printed(row.paper_parameters_m, 0),
            "" if row.gpu_hours is None else f"{row.gpu_hours:.2f}",
        ]
        body.append(cells)
    parts = [
        f"# {one_line(table['question'])}",
        "\n".join(_sentences(table, ours)),
        format_table(heading, body),
    ]
    capped = [f"{one_line(row.label)} ({one_line(row.capped)})" for row in ours if row.capped]
    if capped:
        parts.append(
            f"Capped, so another experiment than the paper's and without a difference to it: {'; '.join(capped)}."
        )
    if others:
        parts.append("Paper only: methods that this study does not train, with the paper's numbers.")
        cells_of = [
            [
                row.label,
                _printed(row.paper_miou_ms),
                _printed(row.paper_pixel_acc_ms),
                _printed(row.paper_parameters_m, 0),
            ]
            for row in others
        ]
        parts.append(format_table(["method", "mIoU (MS)", "pixel acc. (MS)", "M parameters"], cells_of))
    return "\n\n".join(parts) + "\n"


def _sentences(table: Mapping[str, Any], rows: Sequence[SegmentationResultRow]) -> list[str]:
    images = sorted({row.images for row in rows if row.images is not None})
    states = {state: sum(row.state == state for row in rows) for state in ("done", "partial", "planned")}
    testing = table["testing"]
    scales = ", ".join(f"{scale:g}" for scale in testing["scales"])
    sentences = [
        f"In the paper (arXiv 2104.10858): {one_line(table['paper'])}.",
        f"Rows: {', '.join(f'{count} {state}' for state, count in states.items() if count)}.",
        f"Validation scenes: {', '.join(f'{count:,}' for count in images) or 'none yet'}; mean IoU and pixel accuracy in percent.",
        f"SS: a single scale. MS: mean probabilities of the scales {scales}{', each mirrored too' if testing['flip'] else ''}.",
        "Ours: mean over the seeds, ± their standard deviation from two on. Gain: of mean IoU, seed by seed, in points.",
    ]
    if table["dataset"] != SCENES and any(row.paper_miou_ms is not None for row in rows):
        sentences.append(
            f"The paper's numbers are of ADE20K, ours of {one_line(table['dataset'])}: no difference is given."
        )
    return sentences


def with_deviation(mean: float | None, deviation: float | None, digits: int = 2, sign: str = "") -> str:
    """A mean as tables print it, with its standard deviation where there is one."""
    if mean is None:
        return ""
    return f"{mean:{sign}.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def _printed(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
