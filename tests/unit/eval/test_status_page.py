"""The example of docs/status.md is what the command prints, and its tables name every state."""

from __future__ import annotations

import re
from pathlib import Path

from tokenlabel.eval.job_states import STATES
from tokenlabel.eval.status import JobStatus, LabelsStatus, Status, TableStatus, Unreferenced
from tokenlabel.eval.status_text import status_lines

RELABEL, TOKEN, PART = (
    "small-relabel-lite0_probe-48px-08a7ed69",
    "small-token-lite0_probe-48px-0e2b15b3",
    "small-token-lite0_probe-48px-9895be88",
)
EXAMPLE = Status(
    directory="/data/tiny8000",
    configuration="results/study.json",
    manifest=JobStatus("manifest", "results/data/tinyimagenet20-ab5a6ac0/manifest.done", "done"),
    labels=[LabelsStatus("lite0_probe-382b7658", {"done": 4}, [])],
    tables=[
        TableStatus(
            "token_labels", "partial", {"done": 5, "running": 1, "failed": 1, "interrupted": 1, "ready": 4}, 4, 12
        )
    ],
    jobs=[
        JobStatus(f"{TOKEN} seed 2", "", "running", epochs_done=8, epochs=14, remaining_s=360),
        JobStatus(
            f"{RELABEL} seed 1", "", "failed",
            "data_root /data/moved: no such folder on this machine (node17). Set data_root to where the data set lies.",
            f"logs/runs/{RELABEL}/seed1/train.log", 0, 14,
        ),
        JobStatus(
            f"{PART} seed 1", "", "interrupted",
            "last line: 2026-11-30 08:51:23,111 INFO epoch 1, step 199: loss 4.802",
            f"logs/runs/{PART}/seed1/train.log", 1, 14,
        ),
    ],
    disk_bytes={
        "labels": 20_400_000, "annotators": 14_400_000, "weights of runs": 8_600_000, "manifests": 834_000,
        "records of runs": 307_000, "tables, figures, report": 268_000, "logs and benchmarks": 94_200,
    },
    unreferenced=[
        Unreferenced(
            "results/labels/lite0_probe-0badcafe", 2_500_000, "of another configuration",
            "rm -r results/labels/lite0_probe-0badcafe",
        )
    ],
)  # fmt: skip


def test_the_example_is_what_the_command_prints(repository: Path) -> None:
    page = (repository / "docs" / "status.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(.*?)\n```", page, flags=re.DOTALL)
    assert block == "\n".join(status_lines(EXAMPLE))


def test_every_state_is_explained(repository: Path) -> None:
    page = (repository / "docs" / "status.md").read_text(encoding="utf-8")
    jobs = page.split("## States of a job")[1].split("## States of a table")[0]
    assert {state for state in STATES if f"`{state}`" in jobs} == set(STATES)
