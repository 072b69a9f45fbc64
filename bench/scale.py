"""How every part of the driver grows: its time for 1, 10 and 100 times as many generated photographs, shards, jobs or results.

usage: python bench/scale.py [PART ...] [--times 1 10 100] [--repeats 3] [--record]

A part is measured in a process of its own, forked with what it needs made beforehand: processor seconds (the median of the
repetitions), because other work on the machine lengthens the clock's, and how far its memory grew. `growth` is the time of one
entry over that at 1x: 1 is a straight line. --record replaces the lines of the measured parts in bench/results/scale.jsonl and
keeps those of the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml

from bench.dag import enlarged, jobs_in, snakemake
from bench.record import RESULTS, ROOT, ResultLines, read_results
from tokenlabel.core.files import write_json, write_text
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.report_contents import report_results
from tokenlabel.core.staleness import stale_shards
from tokenlabel.core.study import Study

Work = Callable[[], object]
LONG_S = 15.0  # processor seconds that are measured once
PHOTOGRAPHS, SHARDS = 142_000, 64  # 100 times as many photographs are ImageNet-21k


def processor_s() -> float:
    """Of this process and the children that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def resident_mb() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measured(work: Work, repeats: int) -> tuple[float, float, int]:
    """Median processor seconds, MB that the process grew by at most, and what it counted; each repetition in a fork."""

    def child(channel: Any) -> None:
        gc.collect()
        before_mb, before_s = resident_mb(), processor_s()
        kept = work()
        taken_s = processor_s() - before_s
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before_mb
        channel.send((taken_s, max(grown, 0.0), kept if isinstance(kept, int) else 0))
        channel.close()
        os._exit(0)

    found = []
    gc.collect()  # what earlier parts left must not count as memory that a fork gives back and takes again
    for _ in range(repeats):
        receiving, sending = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=child, args=(sending,))
        process.start()
        sending.close()
        found.append(receiving.recv())
        process.join()
        if found[-1][0] > LONG_S:
            break
    return statistics.median(line[0] for line in found), statistics.median(line[1] for line in found), found[0][2]


# --- parts: each makes what is needed for `times` as many entries and gives their number (0: the work counts them) and the work ---


def list_files(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.data.readers import list_entries

    count = 2_000 * times
    for number in range(count // 100):
        place = folder / f"n{number:08d}"
        place.mkdir()
        for index in range(100):
            (place / f"n{number:08d}_{index}.JPEG").write_bytes(b"x")
    return count, lambda: list_entries(folder.parent, folder.name, "folder")


def generated_manifest(times: int, folder: Path) -> tuple[int, Work]:
    from bench.manifest import generated, machine, spec
    from tokenlabel.data import manifest as manifests
    from tokenlabel.data.listing import Entry, Listing

    count = PHOTOGRAPHS * times
    one = Listing([Entry("n00000000/v.JPEG", 1, -1, 0, "n00000000")], ["n00000000"])

    def listed(_root: Path, location: str, _format: str) -> Listing:
        return generated(count) if location == "train" else one

    def build() -> object:
        with mock.patch.object(manifests, "list_entries", listed):
            return manifests.save_manifests(folder, manifests.build_manifests(spec(1000), machine(folder, "one")))

    return count, build


def loaded_manifest(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.data.manifest import load_manifest

    count, build = generated_manifest(times, folder)
    measured(lambda: write_json(folder / "manifest.done", build()), 1)
    return count, lambda: load_manifest(folder, "train")


def shuffled_order(times: int, folder: Path, read_order: str = "shuffled") -> tuple[int, Work]:
    from tokenlabel.engine.batch_plan import BatchPlan
    from tokenlabel.engine.processes import ALONE
    from tokenlabel.train.reading_order import ReadingOrder

    count = PHOTOGRAPHS * times
    manifest = mock.Mock(spec=["offset", "archive", "__len__"])
    manifest.offset, manifest.archive = np.arange(count) * 110_000 % 2**40, np.arange(count) * 64 // count
    manifest.__len__ = lambda _: count
    rows = np.arange(count)

    def work() -> object:
        order = ReadingOrder(manifest, rows, {"read_order": read_order, "shuffle_buffer": 10_000}, 0)
        plan = BatchPlan(order, count, batch_size=1024, micro_batch=128, processes=ALONE)
        return sum(len(step) for step in plan.steps(0))

    return count, work


def sequential_order(times: int, folder: Path) -> tuple[int, Work]:
    return shuffled_order(times, folder, "sequential")


def label_shards(folder: Path, shards: int, images: int) -> np.ndarray:
    """Writes small finished shards of maps of one cell; returns the ids."""
    from tokenlabel.labels.attributes import ShardAttributes
    from tokenlabel.labels.records import LabelRows
    from tokenlabel.labels.shard_writer import write_shard

    found = []
    for shard in range(shards):
        rng = np.random.default_rng(shard)
        ids = np.unique(rng.integers(0, 2**63 // shards, images, dtype=np.uint64)) * np.uint64(shards) + np.uint64(
            shard
        )
        count = len(ids)
        rows = LabelRows(
            sample_id=ids, scores=np.ones((count, 1, 1, 1), np.float16), classes=np.zeros((count, 1, 1, 1), np.uint16),
            tail=None, image_size=np.full((count, 2), 500, np.uint32), status=np.zeros(count, np.uint8), reason=[""] * count,
        )  # fmt: skip
        attributes = ShardAttributes(
            annotator="generated", architecture="none", weights_sha256="ab" * 32, image_px=96, view="squash",
            preprocessing={"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}, num_classes=10, rows=1, cols=1,
            k=1, precision="float16", split="train", shard=shard, total=shards, manifest_digest=f"m{shard}",
            labels_digest="00000000", libraries={}, created="2026-11-25T00:00:00+00:00", storage="fast",
        )  # fmt: skip
        write_shard(folder, attributes, ids, [rows])
        found.append(ids)
    return np.concatenate(found)


def open_shards(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.labels import LabelStore

    label_shards(folder, SHARDS * times, 2)
    return SHARDS * times, lambda: LabelStore(folder, "train")


def open_ids(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.labels import LabelStore

    ids = label_shards(folder, 1, 20_000 * times)
    return len(ids), lambda: LabelStore(folder, "train")


def look_up_ids(times: int, folder: Path) -> tuple[int, Work]:
    """As many photographs as the smallest size has, however many there are: constant time a photograph is a growth of 1 / times."""
    from tokenlabel.labels import LabelStore

    ids = label_shards(folder, 1, 20_000 * times)
    store = LabelStore(folder, "train")
    wanted = np.random.default_rng(0).permutation(ids)[:20_000].tolist()
    return 20_000, lambda: [store[identifier].status for identifier in wanted]


def stale_markers(times: int, folder: Path) -> tuple[int, Work]:
    count = SHARDS * times
    for shard in range(count):
        write_text(folder / f"train-{shard:05d}-of-{count:05d}.done", json.dumps({"manifest_digest": f"m{shard}"}))
    digests = {"train": [f"m{shard}" for shard in range(count)]}
    return count, lambda: stale_shards(folder, digests)


def with_shards(times: int) -> dict[str, Any]:
    return {"labels": {"shards": min(SHARDS * times, 99_999)}}


def configured(folder: Path, overlay: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def base_configuration(*overlays: Path) -> dict[str, Any]:
    return read_configuration([ROOT / "config.yaml", *overlays])


def many_experiments(times: int) -> dict[str, Any]:
    return enlarged(base_configuration(), times)


def planned_experiments(times: int, folder: Path) -> tuple[int, Work]:
    raw = base_configuration(configured(folder, many_experiments(times)))
    return len(Study.plan(raw).runs), lambda: Study.plan(raw)


def priced_experiments(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.core.plan import plan_study

    study = Study.plan(base_configuration(configured(folder, many_experiments(times))))
    return len(study.runs), lambda: plan_study(study, folder)


def priced_shards(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.core.plan import plan_study

    study = Study.plan(base_configuration(configured(folder, with_shards(times))))
    return SHARDS * times * len(study.selected_labels), lambda: plan_study(study, folder)


def parsed_experiments(times: int, folder: Path) -> tuple[int, Work]:
    overlay = configured(folder, many_experiments(times))
    runs = len(Study.plan(base_configuration(overlay)).runs)
    return runs, lambda: snakemake(ROOT, folder, overlay, "--list-target-rules")


def graph(folder: Path, overlay: Path, target: str) -> tuple[int, Work]:
    return 0, lambda: jobs_in(snakemake(ROOT, folder, overlay, "-n", target)[1])


def graph_of_experiments(times: int, folder: Path) -> tuple[int, Work]:
    return graph(folder, configured(folder, many_experiments(times)), "all")


def graph_of_labels(times: int, folder: Path) -> tuple[int, Work]:
    overlay = with_shards(times) | {"select": {"annotators": ["nfnet_f6"]}}
    return graph(folder, configured(folder, overlay), "labels")


def graph_of_shards(times: int, folder: Path) -> tuple[int, Work]:
    """Every training waits for every shard of its labels: the edges grow with both."""
    overlay = with_shards(times) | {"select": {"experiments": ["main", "ablation_supervision"]}}
    return graph(folder, configured(folder, overlay), "all")


def generated_results(times: int, folder: Path) -> Study:
    """A study whose trainings, evaluations and tables are all there."""
    study = Study.plan(base_configuration(configured(folder, many_experiments(times))))
    for table in study.selected_tables:
        write_json(folder / table.plan, table.as_json())
        lines = ["name,label,state,top1_mean,paper_top1,capped"]
        lines += [f"{row.name},{row.label},done,81.{number:02d},82.0," for number, row in enumerate(table.rows)]
        write_text(folder / table.csv, "\n".join(lines) + "\n")
        for path in {*table.inputs, *table.trainings}:
            if not (folder / path).exists():
                write_json(folder / path, {"top1": 80.0, "epochs": 300, "seconds": 3600.0, "val_images": 50_000})
    for job in study.used_labels:
        for marker in job.markers:
            write_json(folder / marker, {"images": 20_000, "manifest_digest": "m"})
    return study


def status_of_results(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.eval.status import gather

    study = generated_results(times, folder)
    return len(study.selected_runs), lambda: gather(folder, study, "generated", 0.0)


def contents_of_report(times: int, folder: Path) -> tuple[int, Work]:
    study = generated_results(times, folder)
    return len(study.selected_tables), lambda: report_results(study)


def pages_of_report(times: int, folder: Path) -> tuple[int, Work]:
    from tokenlabel.eval.report_pages import make_pages

    study = generated_results(times, folder)
    raw = base_configuration(folder / "study.yaml")
    contents = {
        "results": [{**vars(result), "command": result.command} for result in report_results(study)],
        "configuration": raw, "digest": "00000000",
    }  # fmt: skip
    return len(study.selected_tables), lambda: make_pages(contents, folder)


# part -> what is counted, and who makes it
PARTS: dict[str, tuple[str, Callable[[int, Path], tuple[int, Work]]]] = {
    "manifest: list tiny files on a disk": ("photographs", list_files),
    "manifest: build and write from a listing": ("photographs", generated_manifest),
    "manifest: load": ("photographs", loaded_manifest),
    "training: an epoch's order and batches, shuffled": ("photographs", shuffled_order),
    "training: the same, sequential": ("photographs", sequential_order),
    "labels: open a store of small shards": ("shards", open_shards),
    "labels: open a store of one shard": ("photographs", open_ids),
    "labels: read 20,000 labels of that shard": ("labels read", look_up_ids),
    "labels: look for stale shards": ("shards", stale_markers),
    "plan: Study.plan, three seeds": ("runs", planned_experiments),
    "plan: Snakefile parsed": ("runs", parsed_experiments),
    "plan: priced, experiments": ("runs", priced_experiments),
    "plan: priced, shards of nine annotators": ("shard jobs", priced_shards),
    "graph: labels of one annotator": ("jobs", graph_of_labels),
    "graph: two tables, more shards": ("jobs", graph_of_shards),
    "graph: all, more experiments": ("jobs", graph_of_experiments),
    "status: everything done": ("trainings", status_of_results),
    "report: contents": ("tables", contents_of_report),
    "report: pages": ("tables", pages_of_report),
}


def measure(part: str, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """A line for each size."""
    unit, make = PARTS[part]
    lines: list[dict[str, Any]] = []
    for times in sizes:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            folder = Path(name).resolve() / "made"
            folder.mkdir()
            entries, work = make(times, folder)
            taken_s, grown_mb, counted = measured(work, repeats)
        entries = entries or counted
        line = {
            "part": part,
            "unit": unit,
            "times": times,
            "entries": entries,
            "processor_s": taken_s,
            "grown_mb": grown_mb,
        }
        line["us_per_entry"] = taken_s / entries * 1e6
        line["growth"] = line["us_per_entry"] / lines[0]["us_per_entry"] if lines else 1.0
        lines.append(line)
        print(
            f"{part:52} {times:4}x {entries:11,} {unit:12} {taken_s:9.3f} s {line['us_per_entry']:11.2f} us"
            f" {line['growth']:6.2f} {grown_mb:8.0f} MB",
            flush=True,
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="beginnings of parts' names (default: all)")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100], help="sizes (default: 1 10 100)")
    parser.add_argument("--repeats", type=int, default=3, help="of each size (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write bench/results/scale.jsonl")
    args = parser.parse_args()
    chosen = [part for part in PARTS if not args.parts or part.startswith(tuple(args.parts))]
    if not chosen:
        parser.error(f"no such part; there are {', '.join(PARTS)}")
    for part in chosen:
        lines = measure(part, args.times, args.repeats)
        if args.record:
            replace(part, lines)


def replace(part: str, lines: list[dict[str, Any]]) -> None:
    """Puts a part's lines in the place of its earlier ones."""
    kept = [line for line in read_results("scale") if line["part"] != part]
    (RESULTS / "scale.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
    file = ResultLines("scale", fresh=False)
    for line in lines:
        file.add(**line)


if __name__ == "__main__":
    main()
