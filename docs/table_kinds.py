"""The kinds of tables that docs/tables.py fills: each has `lines()`, what it rests on, and `rows()`, heading and cells.

A `Table` shows fields of result lines; the others compute what they show, from the campaign's lines or from the configuration.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import read_results
from campaign.faults import FAULTS, Fault
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.plan import plan_study
from tokenlabel.core.recipe_sources import read_recipe_sources
from tokenlabel.core.report_contents import category_of
from tokenlabel.core.study import Study
from tokenlabel.eval.plan_table import coefficient_cells, row_cells
from tokenlabel.train.explain_command import show_value

ROOT = Path(__file__).resolve().parents[1]
BENCH, CAMPAIGN = ROOT / "bench" / "results", ROOT / "campaign" / "results"

Line = dict[str, Any]


class TableError(Exception):
    """A page and the result files do not fit each other."""


@dataclass(frozen=True)
class Table:
    """A table with a row for each result line.

    Attributes:
        results: stem of the file in bench/results.
        columns: heading -> field of the line and how it is written (a format specification).
        where: which lines belong to it.
    """

    results: str
    columns: dict[str, tuple[str, str]]
    where: Callable[[Line], bool] = lambda line: True

    def lines(self) -> list[Line]:
        """The result lines that belong to it."""
        return [line for line in read_results(self.results, BENCH) if self.where(line)]

    def rows(self) -> list[list[str]]:
        """Heading and cells."""
        return [
            list(self.columns),
            *([self._cell(line, *column) for column in self.columns.values()] for line in self.lines()),
        ]

    def _cell(self, line: Line, field: str, form: str) -> str:
        if field not in line:
            raise TableError(
                f"bench/results/{self.results}.jsonl: no {field!r} in a line that has {', '.join(sorted(line))}"
            )
        return "" if line[field] is None else format(line[field], form)


@dataclass(frozen=True)
class FaultTable:
    """The campaign's faults of one job: one row each, with counts.

    Attributes:
        of: how their names start, `training` or `slurm`; empty: the rest, those of labels.
    """

    of: str

    @property
    def _faults(self) -> dict[str, Fault]:
        kind = {name: name.split("_")[0] for name in FAULTS}
        return {
            name: fault
            for name, fault in FAULTS.items()
            if (kind[name] if kind[name] in ("training", "slurm") else "") == self.of
        }

    def lines(self) -> list[Line]:
        """All result lines of these faults."""
        return [line for fault in self._faults for line in read_results(fault, CAMPAIGN)]

    def rows(self) -> list[list[str]]:
        """Heading and cells; a fault without results is an error, because a table with holes shows less than it says."""
        rows = [["fault", "trials", "what had to hold", "held", "median s a trial", "worst s"]]
        for name, fault in self._faults.items():
            lines = read_results(name, CAMPAIGN)
            if {line["seed"] for line in lines} != set(range(fault.trials)):
                raise TableError(
                    f"campaign/results/{name}.jsonl: {len(lines)} of {fault.trials} result lines; run make campaign"
                )
            seconds = [line["elapsed_s"] / line["count"] for line in lines]
            count, held = (sum(line[field] for line in lines) for field in ("count", "held"))
            cells = [fault.title, f"{count:,}", fault.held, f"{held:,}"]
            rows.append([*cells, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"])
        return rows


class RecipeTable:
    """The recipes of config.yaml: every value of the first with its source, and what the others have instead."""

    def lines(self) -> list[Line]:
        """The values of each recipe, one line a key."""
        recipes = read_configuration([ROOT / "config.yaml"])["recipes"]
        return [
            {name: values[key] for name, values in recipes.items()} | {"key": key} for key in recipes["released_code"]
        ]

    def rows(self) -> list[list[str]]:
        """Heading and cells; empty where a recipe has the first one's value."""
        sources = read_recipe_sources([ROOT / "config.yaml"])
        first, *others = sources.origins
        rows = [["key", f"`{first}`", "source", *(f"`{name}`" for name in others)]]
        for line in self.lines():
            key, value = line["key"], line[first]
            cells = ["" if line[name] == value else show_value(line[name]) for name in others]
            rows.append([f"`{key}`", show_value(value), sources.origins[first][key].words, *cells])
        return rows


@dataclass(frozen=True)
class PlanTable:
    """The plan of config.yaml, or of a study on top of it, as it is before anything ran.

    Attributes:
        columns: headings to show; () for all.
        targets: to show; () for all.
        overlay: on top of config.yaml.
    """

    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    overlay: Path | None = None

    def lines(self) -> list[Line]:
        """Heading -> cell of each target."""
        files = [ROOT / "config.yaml", *([self.overlay] if self.overlay else [])]
        plan = plan_study(Study.plan(read_configuration(files)), ROOT / "no such folder")
        heading, cells = row_cells((*plan.rows, *plan.unselected), plan.settings["currency"])
        lines = [dict(zip(heading, row, strict=True)) for row in cells]
        return [line for line in lines if not self.targets or line["target"] in self.targets]

    def rows(self) -> list[list[str]]:
        """Heading and cells."""
        lines = self.lines()
        columns = self.columns or tuple(lines[0])
        return [list(columns), *([line[column] for column in columns] for line in lines)]


class CoefficientTable:
    """The GPU types of config.yaml's plan."""

    def lines(self) -> list[Line]:
        """Heading -> cell of each type."""
        heading, cells = coefficient_cells(read_configuration([ROOT / "config.yaml"])["plan"])
        return [dict(zip(heading, row, strict=True)) for row in cells]

    def rows(self) -> list[list[str]]:
        """Heading and cells."""
        lines = self.lines()
        return [list(lines[0]), *(list(line.values()) for line in lines)]


class ExperimentTable:
    """What config.yaml's study selects: each table's command and what it takes alone. Runs that tables share count in each."""

    def lines(self) -> list[Line]:
        """One line a table, in the order of the paper's."""
        study = Study.plan(read_configuration([ROOT / "config.yaml"]))
        tables = study.selected_tables
        planned = {row.target: row for row in plan_study(study, ROOT / "no such folder").rows}
        found = []
        for table in sorted(tables, key=category_of):
            runs = {run.name: run for row in table.rows for run in getattr(row.run, "chain", [])}.values()
            found.append(
                {
                    "paper": table.experiment.paper.split("(")[0].strip().replace("none", "ours"),
                    "target": table.csv,
                    "rows": len(table.rows),
                    "trainings": sum(run.start is None for run in runs),
                    "finetunings": sum(run.start is not None for run in runs),
                    "epochs": sum(run.epochs for run in runs) * len(table.seeds),
                    "annotators": len({run.labels.name for run in runs if run.labels}),
                    "gpu_hours": round(planned[table.name].gpu_hours),
                }
            )
        return found

    def rows(self) -> list[list[str]]:
        """Heading and cells."""
        heading = ["paper", "command", "rows", "trainings", "fine-tunings", "epochs in all", "annotators", "GPU hours"]
        return [
            heading,
            *(
                [line["paper"], f"`snakemake {line['target']}`", *(f"{line[name]:,}" for name in list(line)[2:])]
                for line in self.lines()
            ),
        ]
