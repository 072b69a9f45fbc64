"""Plans of tables that are made from what exists already: results/so_far and Table 12. Called by rules/common.smk.

A plan lists the evaluations that were found, with digests of their bytes, and its own digest is in its name: so a new or other
evaluation makes the table again, and a touched or copied one does not. No evaluation is an input of the job, because asking for a
table so far must never plan a training, whatever is missing or stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import sha256_of
from .identity import digest_of
from .planned import RESULTS, Run, Table
from .segment_plan import SegmentationTable
from .study import Study

COMPARED = "4/lvvit_m_384"  # the row of the paper that Table 12 compares with CaiT


def plan_so_far(table: Table | SegmentationTable, base: Path = Path()) -> tuple[str, dict[str, Any]]:
    """Path and content of what the job of a table so far reads."""
    return _dated(table.name, table.as_json(), table.inputs, base)


def plan_comparison(study: Study, base: Path = Path()) -> tuple[str, dict[str, Any]]:
    """Path and content of what the job of Table 12 reads: the run that stands for the paper's LV-ViT-M at 384 px.

    Raises:
        ConfigError: no experiment has such a row.
    """
    if found := compared_row(study):
        table, position, run = found
        plan = table.as_json()
        plan |= {"rows": [plan["rows"][position]], "specs": [link.spec for link in run.chain]}
        return _dated("comparison_cait", plan, [run.result(seed) for seed in table.seeds], base)
    raise ConfigError(
        f"results/comparison_cait.csv: no row of any experiment says paper_row: {COMPARED}, which Table 12 compares with CaiT. "
        "Give it to the row of your LV-ViT-M at 384 px."
    )


def compared_row(study: Study) -> tuple[Table, int, Run] | None:
    """Table, position and run of the row that Table 12 compares; None where no experiment has one."""
    for table in study.tables.values():
        for position, row in enumerate(table.rows):
            if row.paper.reference == COMPARED and isinstance(row.run, Run) and row.model.startswith("lvvit_"):
                return table, position, row.run
    return None


def _dated(name: str, plan: dict[str, Any], evaluations: list[str], base: Path) -> tuple[str, dict[str, Any]]:
    plan = plan | {"found": {path: sha256_of(base / path) for path in evaluations if (base / path).is_file()}}
    return str(RESULTS / "tables" / f"{name}-so_far-{digest_of(plan)}.json"), plan
