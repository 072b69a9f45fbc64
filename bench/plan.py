"""How far off the plan is: what it estimates for each kind of job against what finished jobs took on this machine.

usage: python bench/plan.py [--study NAME FOLDER CONFIGFILE ...]... [--record]

FOLDER is where a study ran, CONFIGFILEs its overlays; without --study the demo's study runs first, cut down, in a temporary folder.
On a busy machine seconds say little, so jobs are measured by the processor seconds in their benchmark files, which hold for
`plan.gpu: cpu` with one thread a job. `after correction`: each job estimated as the plan does once the others of its kind are
finished, the largest error.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import yaml
from record import ROOT, ResultLines

from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.plan import list_targets
from tokenlabel.core.plan_jobs import Job, JobList
from tokenlabel.core.study import Study

CUT_DOWN = {
    "caps": {"epochs": 10, "images": 48},
    "select": {"annotators": ["efficientnet_lite0"], "experiments": ["main", "ablation_annotators"]},
    "defaults": {"annotator": "efficientnet_lite0"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--study", nargs="+", action="append", default=[], metavar="WORD", help="NAME FOLDER CONFIGFILE ..."
    )
    parser.add_argument("--record", action="store_true", help="write bench/results/plan.jsonl")
    args = parser.parse_args()
    if any(len(words) < 3 for words in args.study):
        parser.error("--study takes a name, a folder and one or more configuration files")
    with tempfile.TemporaryDirectory() as temporary:
        studies = args.study or [["demo", temporary, *run_demo(Path(temporary))]]
        lines = [line for name, folder, *files in studies for line in compare(name, Path(folder), map(Path, files))]
    record = ResultLines("plan", fresh=True) if args.record else None
    for line in lines:
        print(
            "{study:16} {kind:28} {jobs:3d} jobs, estimated {estimated_s:8.1f} s, took {processor_s:8.1f} s, "
            "ratio {ratio:5.2f}".format(**line)
        )
        if record:
            record.add(**line)
    return 0


def run_demo(folder: Path) -> list[str]:
    """Runs a small study of the demo's photographs to its end; returns its overlays."""
    subprocess.run([sys.executable, "-m", "tokenlabel", "demo", str(folder / "data")], check=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(CUT_DOWN), encoding="utf-8")
    files = [str(ROOT / "demo" / "config.yaml"), str(folder / "small.yaml")]
    command = [sys.executable, "-m", "snakemake", "all", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
    subprocess.run([*command, "--quiet", "all", "--directory", str(folder), "--configfile", *files], check=True)
    return files


def compare(name: str, folder: Path, files: map[Path]) -> list[dict[str, object]]:
    """A result line for each kind of job of which some are finished.

    Args:
        name: of the study.
        folder: with its results and benchmarks.
        files: its overlays.
    """
    study = Study.plan(read_configuration([ROOT / "config.yaml", *files]))
    jobs = JobList(study)
    list_targets(study, jobs)
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for job in jobs.jobs.values():
        took = processor_seconds(job, folder)
        if took is not None:
            kinds[job.kind].append((job.seconds, took))
    lines: list[dict[str, object]] = []
    for kind, pairs in kinds.items():
        estimated, took = (sum(side) for side in zip(*pairs, strict=True))
        errors = [
            abs(should * (took - did) / (estimated - should) / did - 1) for should, did in pairs if len(pairs) > 1
        ]
        lines.append(
            {
                "study": name, "kind": kind, "jobs": len(pairs), "estimated_s": estimated, "processor_s": took,
                "ratio": took / estimated, "error_after": max(errors, default=None),
            }
        )  # fmt: skip
    return lines


def processor_seconds(job: Job, folder: Path) -> float | None:
    """What a finished job on a processor took, None for others; a training in legs is left out."""
    benchmark = f"benchmarks/runs/{job.run[0]}/seed{job.run[1]}/train.tsv" if job.run else job.benchmark
    if not job.gpus or job.parts > 1 or benchmark is None or not (folder / benchmark).exists():
        return None
    with (folder / benchmark).open(encoding="utf-8", newline="") as file:
        return sum(float(row["cpu_time"]) for row in csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    sys.exit(main())
