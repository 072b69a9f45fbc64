"""Planning time of the study as it grows: `snakemake -n all` with three seeds, once and with 3 and 10 times the experiments.

usage: python bench/dag.py [--times 1 3 10] [--repeats 3] [--against CHECKOUT] [--record]

Copies of the experiments have a weight decay of their own, so that each copy's runs are new ones; the label shards stay shared.
Seconds are processor seconds, because planning is one busy thread and other work on the machine lengthens the clock's. With
--against, another checkout plans the same studies in turn, and the ratio of each pair is printed; it is not recorded.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from bench.record import ROOT, ResultLines
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.study import Study

SEEDS = [0, 1, 2]


def enlarged(config: dict[str, Any], times: int) -> dict[str, Any]:
    """An overlay that selects every selected experiment `times` times, with three seeds each."""
    experiments: dict[str, Any] = {}
    for copied in range(times):
        for name in config["select"]["experiments"]:
            if copied == 0:
                experiments[name] = {"seeds": SEEDS}
                continue
            entry = copy.deepcopy(config["experiments"][name]) | {"seeds": SEEDS}
            entry["set"] = {**entry.get("set", {}), "train.weight_decay": 0.05 + copied / 1000}
            experiments[f"{name}_{copied}"] = entry
    return {"experiments": experiments, "select": {"experiments": list(experiments)}}


def processor_seconds(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, str]:
    """User and system seconds of a command and its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        raise SystemExit(finished.stderr[-2000:])
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return taken, finished.stdout + finished.stderr


def snakemake(checkout: Path, folder: Path, overlay: Path, *words: str) -> tuple[float, str]:
    """Seconds and output of Snakemake with a checkout's workflow and package."""
    package = folder / f"package-{abs(hash(checkout))}"
    package.mkdir(exist_ok=True)
    if not (package / "tokenlabel").exists():
        (package / "tokenlabel").symlink_to(checkout / "src")
    command = [sys.executable, "-m", "snakemake", *words, "--snakefile", str(checkout / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(overlay), "--quiet", "rules"]
    return processor_seconds(command, os.environ | {"PYTHONPATH": str(package)})


def jobs_in(output: str) -> int:
    """The total of a dry run's job table."""
    return next(int(line.split()[1]) for line in output.splitlines() if line.startswith("total"))


def plan_seconds(raw: dict[str, Any]) -> tuple[float, int]:
    """Processor seconds of Study.plan, and how many runs it planned."""
    started = time.process_time()
    study = Study.plan(raw)
    return time.process_time() - started, len(study.runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, nargs="+", default=[1, 3, 10], help="sizes (default: 1 3 10)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all sizes (default: %(default)s)")
    parser.add_argument("--against", type=Path, help="another checkout, planned in turn")
    parser.add_argument("--record", action="store_true", help="write bench/results/dag.jsonl")
    args = parser.parse_args()
    config = read_configuration([ROOT / "config.yaml"])
    found: dict[int, list[dict[str, float]]] = {times: [] for times in args.times}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(args.repeats):
            for times in args.times:
                overlay = folder / f"{times}.yaml"
                overlay.write_text(yaml.safe_dump(enlarged(config, times)))
                plan_s, runs = plan_seconds(read_configuration([ROOT / "config.yaml", overlay]))
                parse_s, _ = snakemake(ROOT, folder, overlay, "--list-target-rules")
                total_s, output = snakemake(ROOT, folder, overlay, "-n", "all")
                line = {"runs": runs, "jobs": jobs_in(output), "plan_s": plan_s, "parse_s": parse_s, "total_s": total_s}
                if args.against:
                    line["against"] = snakemake(args.against.resolve(), folder, overlay, "-n", "all")[0] / total_s
                found[times].append(line)
                print(times, {key: round(value, 3) for key, value in line.items()}, flush=True)
    lines = ResultLines("dag", fresh=True) if args.record else None
    print(
        f"{'times':>5} {'jobs':>6} {'plan s':>7} {'start s':>7} {'DAG s':>7} {'total s':>7} {'jobs x':>6} {'total x':>7}"
    )
    first = found[args.times[0]]
    for times, measured in found.items():
        middle = {key: statistics.median(line[key] for line in measured) for key in measured[0]}
        growth = statistics.median(one["total_s"] / two["total_s"] for one, two in zip(measured, first, strict=True))
        row = {
            "times": times,
            "runs": round(middle["runs"]),
            "jobs": round(middle["jobs"]),
            "plan_s": middle["plan_s"],
            "start_s": middle["parse_s"] - middle["plan_s"],
            "dag_s": middle["total_s"] - middle["parse_s"],
            "total_s": middle["total_s"],
            "jobs_ratio": middle["jobs"] / first[0]["jobs"],
            "total_ratio": growth,
        }
        print(
            f"{times:5} {row['jobs']:6,} {row['plan_s']:7.2f} {row['start_s']:7.2f} {row['dag_s']:7.2f}"
            f" {row['total_s']:7.2f} {row['jobs_ratio']:6.2f} {row['total_ratio']:7.2f}"
        )
        if args.against:
            print(f"      {args.against} takes {middle['against']:.2f} times as long")
        if lines:
            lines.add(**row)


if __name__ == "__main__":
    main()
