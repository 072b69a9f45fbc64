"""Runs the fault campaign: every trial of every fault that has no result line yet.

usage: python -m campaign [FAULT ...] [--trials N] [--fresh]. Killed and started again it goes on; `--fresh` throws earlier
results of the faults away. Appends to campaign/results/FAULT.jsonl and returns 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.record import ResultLines, read_results
from tokenlabel.demo.photographs import write_crops

from .cluster import start_anew
from .faults import FAULTS, Workplaces
from .workplace import CannotRunError, DidNotHoldError

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Runs what was asked for; prints one line a trial."""
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"which (default: all): {', '.join(FAULTS)}")
    parser.add_argument("--trials", type=int, default=None, help="at most so many of each fault")
    parser.add_argument("--fresh", action="store_true", help="start anew: earlier results of these faults go")
    args = parser.parse_args()
    unknown = set(args.faults) - FAULTS.keys()
    if unknown:
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="tokenlabel-campaign-") as name:
        folder = Path(name)
        places = Workplaces(folder, folder / "photographs")
        failed = [fault for fault in args.faults or FAULTS if not run_fault(fault, places, folder, args)]
    print(f"did not hold: {', '.join(failed)}" if failed else "all held")
    return 1 if failed else 0


def run_fault(name: str, places: Workplaces, folder: Path, args: argparse.Namespace) -> bool:
    """Runs the missing trials of a fault; returns whether all that have a line held."""
    fault = FAULTS[name]
    results = ResultLines(name, fresh=args.fresh, folder=RESULTS)
    done = {line["seed"] for line in read_results(name, RESULTS)}
    seeds = range(fault.trials if args.trials is None else min(args.trials, fault.trials))
    for seed in sorted(set(seeds) - done):
        write_crops(folder / "photographs")
        try:
            place = places.of(fault)
            assert place.reference  # an undisturbed job first, so that it counts into no trial's time
            started = time.monotonic()
            row = fault.trial(place, seed, folder / "scratch")
        except CannotRunError as error:
            print(f"{name}: left out, {error}")
            break
        except (DidNotHoldError, TimeoutError) as error:
            row = {"held": 0, "wrong": [str(error)]}
            if fault.place == "cluster":
                start_anew()  # what a failed trial leaves there would fail the trials after it
        row = {"count": 1, "held": row.get("count", 1), **row}
        results.add(fault=name, seed=seed, elapsed_s=round(time.monotonic() - started, 3), **row)
        print(
            f"{name} {seed}: {row['held']} of {row['count']} held, {row.get('did', '')} {row.get('wrong', '')}",
            flush=True,
        )
    return all(line["held"] == line["count"] for line in read_results(name, RESULTS))


if __name__ == "__main__":
    sys.exit(main())
