"""What differs between two runs: every key of their specs, code, machine, photographs; and their results beside each other.

Called by `tokenlabel status --diff`, for classifiers and for segmenters. Reads spec.json, summary.json, done.json, the manifest's
marker and evaluations; what a run has not got yet is None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import DataError, unknown_name
from ..core.files import read_json
from ..core.identity import digest_of

MACHINE = ("device", "precision", "processes", "micro_batch", "batch_size")
RESULTS = (
    "final.top1", "best.top1", "final.miou", "best.miou", "epochs", "seconds", "images_per_s", "memory_mb", "resumed",
)  # fmt: skip
# folders of runs under results/ -> where the manifests of what they read lie
KINDS = {"runs": "data", "segmentation": "scenes"}
Pairs = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class RunDifference:
    """Two runs beside each other.

    Attributes:
        first, second: their folders.
        groups: settings, code, machine and data with the keys that differ; results with every one that either has.
        problems: files that cannot be read.
    """

    first: str
    second: str
    groups: dict[str, Pairs]
    problems: list[str] = field(default_factory=list)


def compare_runs(base: Path, first: str, second: str) -> RunDifference:
    """Compares two runs.

    Args:
        base: folder that holds results/.
        first: a folder, or a name under results/runs or results/segmentation, with or without /seedN; without: its first seed.
        second: the other one.

    Raises:
        DataError: there is no such run, or no spec in it.
    """
    problems: list[str] = []
    folders = [find_run(base, name) for name in (first, second)]
    facts = [_facts(base, folder, problems) for folder in folders]
    groups = {title: _pairs(facts[0][title], facts[1][title]) for title in ("settings", "code", "machine", "data")}
    groups = {
        title: {key: pair for key, pair in pairs.items() if pair[0] != pair[1]} for title, pairs in groups.items()
    }
    groups["results"] = _pairs(facts[0]["results"], facts[1]["results"])
    return RunDifference(_shown(base, folders[0]), _shown(base, folders[1]), groups, problems)


def find_run(base: Path, name: str) -> Path:
    """The folder of one seed of a run.

    Raises:
        DataError: there is none.
    """
    homes = [base / "results" / kind for kind in KINDS]
    places = (Path(name), base / name, *(home / name for home in homes))
    for folder in places:
        if (folder / "spec.json").is_file():
            seeds = sorted(folder.glob("seed*"))
            return seeds[0] if seeds else folder
        if (folder.parent / "spec.json").is_file() and folder.is_dir():
            return folder
    for folder in places:
        if (folder.parent / "spec.json").is_file():
            there = sorted(path.name for path in folder.parent.glob("seed*"))
            raise DataError(f"{folder.parent}: no {folder.name}. It has: {', '.join(there) or 'no seed yet'}.")
        if folder.is_dir() and folder.parent.resolve() in [home.resolve() for home in homes]:
            raise DataError(f"{folder}: no spec.json, so the run cannot be compared. Snakemake writes it anew.")
    known = [path.parent.name for home in homes for path in home.glob("*/spec.json")]
    raise DataError(str(unknown_name("run", name, known, " and ".join(map(str, homes)))))


def flattened(document: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf; lists are leaves."""
    if isinstance(document, Mapping) and document:
        leaves: dict[str, Any] = {}
        for key, value in document.items():
            leaves |= flattened(value, f"{path}.{key}" if path else str(key))
        return leaves
    return {path: document}


def _facts(base: Path, folder: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    run = folder if (folder / "spec.json").is_file() else folder.parent

    def read(path: Path) -> dict[str, Any]:
        try:
            said = read_json(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            problems.append(f"{path}: cannot be read ({error})")
            return {}
        return said if isinstance(said, dict) else {}

    spec = read(run / "spec.json")
    if not spec:
        raise DataError(
            f"{run / 'spec.json'}: cannot be read, so the run cannot be compared. Snakemake writes it anew."
        )
    summary, done = flattened(read(folder / "summary.json")), read(folder / "done.json")
    data = spec.get("dataset") or {}
    kind = "segmentation" if spec.get("stage") == "segment" else "runs"
    manifest = read(base / "results" / KINDS[kind] / f"{data.get('name')}-{digest_of(data)}" / "manifest.done")
    results = {name: summary[name] for name in RESULTS if name in summary}
    for path in sorted(folder.glob("evaluation-*.json")):
        results |= {
            f"{path.stem}.{key}": value
            for key, value in flattened(read(path)).items()
            if isinstance(value, (int, float)) and key != "seconds"
        }
    seed = folder.name.removeprefix("seed") if folder != run else None
    return {
        "settings": flattened(spec) | {"seed": seed},
        "code": {key: value for key, value in summary.items() if key == "commit" or key.startswith("versions.")},
        "machine": {key: summary[key] for key in MACHINE if key in summary},
        "data": {
            "manifest": digest_of(manifest["splits"]) if "splits" in manifest else None,
            "labels": digest_of(spec["labels"]) if spec.get("labels") else None,
            "labels_coverage": summary.get("labels_coverage"),
            "images": done.get("images"),
            "unreadable": done.get("unreadable"),
            "weights_sha256": done.get("weights_sha256"),
        },
        "results": results,
    }


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> Pairs:
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys}


def _shown(base: Path, folder: Path) -> str:
    for kind in KINDS:
        with contextlib.suppress(ValueError):
            return folder.resolve().relative_to((base / "results" / kind).resolve()).as_posix()
    return str(folder)
