"""The paper's numbers (Jiang et al. 2021, arXiv 2104.10858): the one place that reads paper.csv beside this file.

Guarantees that a number is what the paper prints, or says that it is not: `source` of every line is where it stands.
Read by the plan, for `paper_row` and `paper_rows` of config.yaml, and by tables and figures. Holds Tables 1 to 6 and 8 to 12 and
Figs. 4 and 5; Table 7 is config.yaml's recipes. Rows that the study trains have its row names, other methods their printed ones.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Literal, cast

from .errors import unknown_name

DATASET = "imagenet1k"  # dataset.name of the data that every accuracy here is of, but for Tables 5 and 6 (ADE20K)
SCENES = "ade20k"  # segmentation.dataset.name of the data of Tables 5 and 6
SCENE_TABLES = ("5", "6")
Source = Literal["table", "text", "derived", "digitised", ""]

TITLES = {
    **{str(number): f"Table {number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12)},
    "fig4_left": "Fig. 4 left",
    "fig4_right": "Fig. 4 right",
    "fig5": "Fig. 5",
}
STANDING = {
    "table": "",
    "text": ", printed in the text",
    "derived": ", derived from the text and Table 1",
    "digitised": ", read off the figure",
    "": ", drawn but not printed",
}


@dataclass(frozen=True)
class PaperNumber:
    """One number.

    Attributes:
        table: "1" to "12", "fig4_left", "fig4_right" or "fig5".
        row: of the table.
        column: as top1, real_top1, params_m, gflops (what the paper calls FLOPs are multiply-adds), train_px, test_px, miou_ss.
        value: None where it is drawn in a figure and printed nowhere.
        unit: of the value, "0 or 1" for what a table ticks.
        source: table | text | derived (from a difference that the text prints, or Table 1's default model) | digitised | "" (drawn
            only).
    """

    table: str
    row: str
    column: str
    value: float | None
    unit: str
    source: Source


@dataclass(frozen=True)
class PaperRow:
    """What the paper says of one setting; None where it says nothing.

    Attributes:
        reference: TABLE/ROW, as a configuration writes it; None for a number that the configuration gives itself.
        top1, real_top1: in percent.
        parameters_m: 10^6; gmacs: 10^9 multiply-adds.
        source: in words, as "Table 4".
    """

    reference: str | None = None
    top1: float | None = None
    real_top1: float | None = None
    parameters_m: float | None = None
    gmacs: float | None = None
    train_px: int | None = None
    test_px: int | None = None
    source: str | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Table and row; both "" without a reference."""
        table, _, row = (self.reference or "").partition("/")
        return table, row


@functools.cache
def load() -> tuple[PaperNumber, ...]:
    """All numbers, in the order of the paper's tables and their rows."""
    with resources.files(__package__).joinpath("paper.csv").open(encoding="utf-8") as file:
        return tuple(
            PaperNumber(
                table=line["table"],
                row=line["row"],
                column=line["column"],
                value=float(line["value"]) if line["value"] else None,
                unit=line["unit"],
                source=cast(Source, line["source"]),
            )
            for line in csv.DictReader(file)
        )


@functools.cache
def _by_place() -> dict[tuple[str, str, str], PaperNumber]:
    return {(number.table, number.row, number.column): number for number in load()}


def value(table: str, row: str, column: str) -> PaperNumber | None:
    """One number; None where the paper has no such cell, or prints a dash there."""
    return _by_place().get((table, row, column))


def row_names(table: str) -> list[str]:
    """The rows of a table, in the paper's order; none of a table that is not here."""
    return list(dict.fromkeys(number.row for number in load() if number.table == table))


def check_table(table: str, where: str) -> None:
    """Refuses a table that paper.csv does not hold with a ConfigError that lists those it does."""
    if table not in TITLES:
        raise unknown_name("table of the paper", table, TITLES, where)


def find_row(reference: str, where: str) -> PaperRow:
    """What the paper says of a row.

    Args:
        reference: TABLE/ROW, as 4/lvvit_s_384 or fig4_right/nfnet_f6.
        where: the configuration key that names it, for the error.

    Raises:
        ConfigError: there is no such table or row; lists the legal ones.
    """
    table, _, row = reference.partition("/")
    check_table(table, where)
    if row not in row_names(table):
        raise unknown_name(f"row of {TITLES[table]}", row, row_names(table), where)

    def of(column: str) -> float | None:
        number = value(table, row, column)
        return number.value if number else None

    top1 = value(table, row, "top1")
    train_px, test_px = of("train_px"), of("test_px")
    return PaperRow(
        reference=reference,
        top1=of("top1"),
        real_top1=of("real_top1"),
        parameters_m=of("params_m"),
        gmacs=of("gflops"),
        train_px=int(train_px) if train_px else None,
        test_px=int(test_px) if test_px else None,
        source=TITLES[table] + STANDING[top1.source if top1 else "table"],
    )


@dataclass(frozen=True)
class PaperScenes:
    """What the paper says of one segmenter; None where it says nothing. Measures in percent, parameters in 10^6.

    Attributes:
        reference: TABLE/ROW, as a configuration writes it; None for a row that the paper does not have.
        source: in words, as "Table 5".
    """

    reference: str | None = None
    miou_ss: float | None = None
    pixel_acc_ss: float | None = None
    miou_ms: float | None = None
    pixel_acc_ms: float | None = None
    params_m: float | None = None
    source: str | None = None


def find_scenes(reference: str, where: str) -> PaperScenes:
    """What Table 5 or 6 says of a row; arguments and errors as of `find_row`."""
    table, _, row = reference.partition("/")
    if table not in SCENE_TABLES:
        raise unknown_name("table of segmentation in the paper", table, SCENE_TABLES, where)
    if row not in row_names(table):
        raise unknown_name(f"row of {TITLES[table]}", row, row_names(table), where)
    found = {
        name: value(table, row, name) for name in ("miou_ss", "pixel_acc_ss", "miou_ms", "pixel_acc_ms", "params_m")
    }
    numbers = {name: number.value for name, number in found.items() if number}
    return PaperScenes(reference=reference, source=TITLES[table], **numbers)
