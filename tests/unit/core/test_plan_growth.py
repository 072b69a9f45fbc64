"""Planning time grows with the experiments, not faster; what copies of an experiment share stays shared."""

from __future__ import annotations

import copy
import time
from typing import Any

from bench.dag import enlarged
from tokenlabel.core.study import Study

Raw = dict[str, Any]


def with_overlay(raw: Raw, overlay: Raw) -> Raw:
    merged = copy.deepcopy(raw)
    for name, entry in overlay["experiments"].items():
        merged["experiments"][name] = merged["experiments"].get(name, {}) | entry
    merged["select"]["experiments"] = overlay["select"]["experiments"]
    return merged


def seconds_of_plan(raw: Raw) -> float:
    """Processor seconds, the least of three: what else the machine does only adds."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        Study.plan(raw)
        taken.append(time.process_time() - started)
    return min(taken)


def test_ten_times_the_experiments_are_ten_times_the_runs_and_no_more_labels(raw_config: Raw) -> None:
    one, ten = (with_overlay(raw_config, enlarged(raw_config, times)) for times in (1, 10))
    small, large = Study.plan(one), Study.plan(ten)
    assert (len(small.runs), len(large.runs)) == (66, 660)
    assert (len(small.selected_tables), len(large.selected_tables)) == (11, 110)
    assert small.labels.keys() == large.labels.keys()
    assert sum(len(set(table.inputs)) for table in large.selected_tables) == 10 * sum(
        len(set(table.inputs)) for table in small.selected_tables
    )
    # measured: 8 to 11 times; planning that compares each run with all others takes over 30 times as long
    assert seconds_of_plan(ten) <= 20 * seconds_of_plan(one)
