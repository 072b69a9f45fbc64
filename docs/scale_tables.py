"""The tables of docs/scale.md: how the driver grows (bench/results/scale.jsonl), and what ImageNet-21k takes beside ImageNet.

Called by docs/tables.py. What is measured comes from the result lines, the rest from the configurations and the cost model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.record import RESULTS, read_results
from tokenlabel.core import cost, plan_jobs
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.plan import list_targets
from tokenlabel.core.study import Study

ROOT = Path(__file__).resolve().parents[1]
LARGE = ROOT / "examples" / "imagenet21k" / "config.yaml"
FILES_OF_A_SHARD = ("shard", "marker", "log", "benchmark", "Snakemake's record")
STORE_BYTES = (
    14  # of each photograph in a process that has a store open: id, place, status, table; tests/unit/test_scale.py
)

BUILD, LOAD = "manifest: build and write from a listing", "manifest: load"
LIST, OPEN, GRAPH = (
    "manifest: list tiny files on a disk",
    "labels: open a store of small shards",
    "graph: labels of one annotator",
)

Line = dict[str, Any]


class GrowthTable:
    """One row for each part: seconds at each size, and the time of an entry against that at 1x."""

    def lines(self) -> list[Line]:
        """The result lines."""
        return read_results("scale", RESULTS)

    def rows(self) -> list[list[str]]:
        """Heading and cells."""
        rows = [
            [
                "part",
                "entries at 1x",
                "s at 1x",
                "at 10x",
                "at 100x",
                "an entry at 10x / 1x",
                "at 100x / 1x",
                "MB, largest",
            ]
        ]
        parts: dict[str, dict[int, Line]] = {}
        for line in self.lines():
            parts.setdefault(line["part"], {})[line["times"]] = line
        for part, sizes in parts.items():
            first = sizes[1]
            seconds = [f"{sizes[times]['processor_s']:.3g}" if times in sizes else "" for times in (1, 10, 100)]
            growth = [f"{sizes[times]['growth']:.2f}" if times in sizes else "" for times in (10, 100)]
            grown = max(line["grown_mb"] for line in sizes.values())
            cells = [part, f"{first['entries']:,} {first['unit']}", *seconds, *growth]
            rows.append([*cells, f"{grown:,.0f}" if grown >= 1 else ""])
        return rows


class LargeTable:
    """What the two data sets take, side by side, and where each figure is from."""

    def lines(self) -> list[Line]:
        """One line a row."""
        studies = [Study.plan(read_configuration([ROOT / "config.yaml", *more])) for more in ((), (LARGE,))]
        sides = [_facts(study) for study in studies]
        return [
            {"what": what, "from": origin, "cells": [side[what][0] for side in sides]}
            for what, (_, origin) in sides[0].items()
        ]

    def rows(self) -> list[list[str]]:
        """Heading and cells."""
        return [
            ["", "ImageNet", "ImageNet-21k", "from"],
            *([line["what"], *line["cells"], line["from"]] for line in self.lines()),
        ]


def measured(part: str, field: str) -> float:
    """A field of a part's line at the largest size that was measured."""
    lines = [line for line in read_results("scale", RESULTS) if line["part"] == part]
    value: float = max(lines, key=lambda line: line["times"])[field]
    return value


def measured_at(part: str) -> str:
    """Words that say at how many entries that was."""
    return f"measured at {measured(part, 'entries'):,}, per entry"


def _facts(study: Study) -> dict[str, tuple[str, str]]:
    config = study.config
    images, shards, classes = study.train_images, config.labels.shards, config.dataset.num_classes
    annotators = study.selected_labels
    main = next(job for job in annotators if job.annotator == config.defaults.annotator)
    labels = main.spec["labels"]
    grid = config.annotators[main.annotator].grid
    map_bytes = cost.map_bytes(
        grid[0] * grid[1], labels["k"], classes, tail=labels["tail"], storage=config.machine.label_storage
    )
    jobs = plan_jobs.JobList(study)
    list_targets(study, jobs)
    shard_jobs = shards * len(annotators)
    shard_s = plan_jobs.shard_seconds(study, main)
    build_us, load_mb = (
        measured(BUILD, "us_per_entry"),
        measured(LOAD, "grown_mb") / measured(LOAD, "entries"),
    )
    list_us = measured(LIST, "us_per_entry")
    build_mb = measured(BUILD, "grown_mb") / measured(BUILD, "entries")
    per_hour = 3600 * min(config.plan.gpus, shard_jobs) / shard_s
    logits_mb = config.machine.micro_batch * (14 * 14 + 1) * classes * cost.FLOAT32_BYTES / 1e6
    maps_mb = config.machine.annotate_batch * grid[0] * grid[1] * classes * cost.FLOAT32_BYTES / 1e6
    return {
        "training photographs": (f"{images:,}", "configuration"),
        "classes": (f"{classes:,}", "configuration"),
        "annotators": (f"{len(annotators)}", "configuration"),
        "annotator of what follows": (main.annotator, "defaults"),
        "shards of an annotator": (f"{shards:,}", "configuration"),
        "photographs of a shard": (f"{images / shards:,.0f}", "configuration"),
        "shard jobs in all": (f"{shard_jobs:,}", "configuration"),
        "jobs of the study in all": (f"{len(jobs.jobs):,}", "plan"),
        "bytes of a class id": (f"{4 if classes > cost.WIDE_ID_CLASSES else 2}", "label format"),
        "bytes of a map, k 5": (f"{map_bytes:,.0f}", "cost model, measured on maps of 1,000 classes"),
        "GB of labels, an annotator": (f"{map_bytes * images / 1e9:,.1f}", "cost model"),
        "GB of labels, all annotators": (f"{map_bytes * images * len(annotators) / 1e9:,.1f}", "cost model"),
        "GB with all classes kept, an annotator": (
            f"{grid[0] * grid[1] * classes * 4 * images / 1e9:,.0f}", "fp16 score and 16-bit id, not compressed",
        ),
        "files (inodes) of labels, an annotator": (f"{shards * len(FILES_OF_A_SHARD):,}", ", ".join(FILES_OF_A_SHARD)),
        "files with one for each photograph": (f"{images:,}", "the released layout"),
        "GPU minutes of a shard job": (f"{shard_s / 60:,.1f}", "cost model, of that annotator on plan.gpu"),
        "shard jobs that end in an hour": (f"{per_hour:,.0f}", "cost model, plan.gpus at once"),
        "s to list the photographs": (f"{list_us * images / 1e6:,.0f}", f"{measured_at(LIST)}; small files on this disk"),
        "s to make the manifest of that": (f"{build_us * images / 1e6:,.0f}", measured_at(BUILD)),
        "MB that the manifest's job takes": (f"{build_mb * images:,.0f}", "the same"),
        "MB that its job asks for": (f"{cost.manifest_mem_mb(images):,}", "rule make_manifest, first attempt"),
        "MB of the manifest in a job": (f"{load_mb * images:,.0f}", measured_at(LOAD)),
        "MB of an open store's ids": (f"{STORE_BYTES * images / 1e6:,.0f}", f"{STORE_BYTES} bytes a photograph"),
        "s to open the store": (
            f"{measured(OPEN, 'us_per_entry') * shards / 1e6:,.1f}",
            f"{measured_at(OPEN)}; small shards, files in memory",
        ),
        "s to plan an annotator's shards": (
            f"{measured(GRAPH, 'us_per_entry') * shards / 1e6:,.0f}", measured_at(GRAPH),
        ),
        "MB of a micro-batch's logits": (f"{logits_mb:,.0f}", "micro_batch, 196 tokens and the class; as much for the gradient"),
        "MB of an annotator's logits": (f"{maps_mb:,.0f}", "annotate_batch, in single precision"),
    }  # fmt: skip
