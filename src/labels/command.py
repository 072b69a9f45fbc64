"""Inspects, verifies, merges and exports label shards: what they hold, and whether every byte is as it was written.

tokenlabel labels inspect results/labels/nfnet_f6-1a2b3c4d
tokenlabel labels verify results/labels/nfnet_f6-1a2b3c4d --manifest results/data/imagenet-5e6f7a8b
tokenlabel labels merge cluster_a/labels cluster_b/labels --out results/labels/nfnet_f6-1a2b3c4d
tokenlabel labels export results/labels/nfnet_f6-1a2b3c4d --out released --layout released --axes right --manifest ...
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from ..core.errors import ConfigError, LabelError
from ..data.manifest import Manifest, load_manifest
from .merge import IDS_ONLY, plan_merge, write_merged
from .records import LAYOUTS
from .released import SMALLEST_COLS as RELEASED_COLS
from .released import check_class_count, released_name, shared_names, write_released
from .shard_writer import ROWS_AT_ONCE
from .shards import (
    STATUS_OK,
    ShardAttributes,
    ShardSummary,
    read_attributes,
    read_index,
    read_marker,
    read_statuses,
    verify_shard,
)
from .statistics import MapStatistics, joined, sample_statistics
from .store import LabelStore, check_marker, check_name, missing_shards, shards_in

SAMPLE = 256  # maps per shard that inspect reads, and
SAMPLE_OF_ALL = 4096  # of all shards of a folder together
FREQUENT = 8  # classes that inspect lists
NAMED = 3  # photographs that verify names

MANIFEST_HELP = "folder of the data set's manifest, results/data/NAME-DIGEST"
PATHS_HELP = "shards, or folders of shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the actions of `tokenlabel labels`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help_line: str, more: str = "") -> argparse.ArgumentParser:
        return actions.add_parser(name, help=help_line, description=f"{help_line[0].upper()}{help_line[1:]}. {more}")

    inspect = action(
        "inspect",
        "print attributes, counts and statistics of maps",
        f"Statistics come of an evenly spaced sample of readable photographs: at most {SAMPLE} a shard and {SAMPLE_OF_ALL} a "
        "folder, so that it takes seconds on ImageNet. best: the best logit of every cell; distinct: classes of one map, "
        "median; mass stored: share of the probability that the stored classes have, where the shard has a tail.",
    )
    inspect.add_argument("paths", type=Path, nargs="+", metavar="FILE_OR_FOLDER", help=PATHS_HELP)

    verify = action(
        "verify",
        "read every byte and check it",
        "Finds any flipped bit, truncation, missing shard or missing row; goes on after a bad shard; exit code 1 if any is bad.",
    )
    verify.add_argument("paths", type=Path, nargs="+", metavar="FILE_OR_FOLDER", help=PATHS_HELP)
    verify.add_argument(
        "--manifest",
        type=Path,
        metavar="FOLDER",
        help=f"{MANIFEST_HELP}: names photographs without a row, and foreign rows",
    )

    merge = action(
        "merge",
        "merge shards of one annotator into one folder, or cut them into another number of shards",
        "Attributes must agree. A photograph that two shards hold is kept once if both labels are the same bit for bit, and "
        "refused if not; a label replaces an unreadable or pending row. Without --manifest a shard whose photographs are not "
        "exactly those of one source shard of the same number and total gets a digest of its ids, which training refuses as "
        "labels of other photographs; give --manifest to train on re-cut labels.",
    )
    merge.add_argument("paths", type=Path, nargs="+", metavar="FILE_OR_FOLDER", help=PATHS_HELP)
    merge.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where to; must hold no shards of the split"
    )
    merge.add_argument("--split", default="train", help="split to merge (default: %(default)s)")
    merge.add_argument(
        "--shards", type=int, metavar="N", help="shards to write (default: as many as the first source has)"
    )
    merge.add_argument(
        "--storage",
        choices=tuple(LAYOUTS),
        help="compact: fewest bytes; fast: fewest microseconds (default: as the first source)",
    )
    merge.add_argument(
        "--manifest",
        type=Path,
        metavar="FOLDER",
        help=f"{MANIFEST_HELP}: checks the ids and gives the digests that training asks for",
    )

    export = action(
        "export",
        "write the layout of the released code, one .pt a photograph",
        "Axes. right: rows run down and columns right, as the released generator writes; use it with every reader but the "
        "released loader as it is. released: transposed, because that loader swaps x and y of the crop: then the crop's class "
        "target is right, but its token targets are transposed, and photographs that it flips are wrong: train with --hflip 0. "
        "No file makes its token targets right; better mend the loader (coords = j/width, i/height, w/width, h/height) and "
        "export --axes right. It also reads every map as one of the whole photograph, so only labels of view squash fit it. "
        "Unreadable photographs are left out.",
    )
    export.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the shards")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to; DIR/CLASS/NAME.pt")
    export.add_argument("--layout", choices=("released",), required=True, help="which layout")
    export.add_argument("--axes", choices=("released", "right"), required=True, help="see above; there is no default")
    export.add_argument(
        "--manifest", type=Path, required=True, metavar="FOLDER", help=f"{MANIFEST_HELP}: has the file names"
    )
    export.add_argument("--split", default="train", help="split to export (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Does what was asked for; verify returns 1 if any shard is bad."""
    if args.action == "inspect":
        return inspect_shards(args.paths)
    if args.action == "verify":
        return verify_shards(args.paths, args.manifest)
    if args.action == "merge":
        return merge_shards(args.paths, args.out, args.split, args.shards, args.manifest, args.storage)
    return export_released(args.folder, args.out, args.axes == "released", load_manifest(args.manifest, args.split))


# --- inspect ---


def inspect_shards(paths: Sequence[Path]) -> int:
    """Prints, per folder and split, the attributes that all shards share, then counts and statistics per shard.

    Raises:
        LabelError: a shard cannot be read.
    """
    for position, group in enumerate(_grouped(paths)):
        attributes = [read_attributes(path) for path in group]
        if position:
            _say("")
        _say(str(group[0].parent))
        shared = [field.name for field in fields(ShardAttributes) if _agree(attributes, field.name)]
        _say_table([[name, str(getattr(attributes[0], name))] for name in shared])
        _say("")
        own = [field.name for field in fields(ShardAttributes) if field.name not in shared and field.name != "shard"]
        lines = [["file", "images", "ok", "unreadable", "pending", "size_bytes", "bytes/image", *own]]
        counts = [read_statuses(path) for path in group]
        for path, said, counted in zip(group, attributes, counts, strict=True):
            lines.append([path.name, *_counts(counted), *(str(getattr(said, name)) for name in own)])
        if len(group) > 1:
            lines.append(["all", *_counts(_total(counts)), *([""] * len(own))])
        _say_table(lines)
        _inspect_maps(group, attributes)
    return 0


def _counts(counts: ShardSummary) -> list[str]:
    numbers = (counts.images, counts.ok, counts.unreadable, counts.pending, counts.size_bytes)
    return [*map(str, numbers), f"{counts.size_bytes / max(counts.images, 1):.0f}"]


def _total(summaries: Sequence[ShardSummary]) -> ShardSummary:
    names = ("images", "ok", "unreadable", "pending", "size_bytes")
    return ShardSummary(**{name: sum(getattr(one, name) for one in summaries) for name in names}, sha256="")


def _inspect_maps(group: Sequence[Path], attributes: Sequence[ShardAttributes]) -> None:
    """Prints statistics of a sample of the maps."""
    sample = max(1, min(SAMPLE, SAMPLE_OF_ALL // len(group)))
    num_classes = max(said.num_classes for said in attributes)
    pieces = [sample_statistics(path, num_classes, sample) for path in group]
    whole = joined(pieces)
    _say("")
    if not whole.images:
        _say("  no readable photograph, so no statistics")
        return
    _say(f"  statistics of {whole.images} readable photographs, evenly spaced, at most {sample} a shard")
    lines = [["file", "sampled", "smallest logit", "best: 5 %", "median", "95 %", "largest", "distinct", "mass stored"]]
    lines += [[path.name, *_statistics(piece)] for path, piece in zip(group, pieces, strict=True)]
    if len(group) > 1:
        lines.append(["all", *_statistics(whole)])
    _say_table(lines)
    shares = whole.classes / whole.classes.sum()
    ranked = np.argsort(-whole.classes, kind="stable")[:FREQUENT]
    listed = ", ".join(f"{index} ({100 * shares[index]:.1f} %)" for index in ranked.tolist() if whole.classes[index])
    _say(f"  classes that are best in most cells: {listed}")


def _statistics(of: MapStatistics) -> list[str]:
    if not of.images:
        return ["0", *(["-"] * 7)]
    low, middle, high = np.quantile(of.best.astype(np.float32), (0.05, 0.5, 0.95))
    mass = f"{of.mass.mean():.3f}" if len(of.mass) else "no tail"
    logits = (of.smallest, low, middle, high, float(of.best.max()))
    return [str(of.images), *(f"{value:.2f}" for value in logits), f"{np.median(of.distinct):g}", mass]


# --- verify ---


def verify_shards(paths: Sequence[Path], manifest_folder: Path | None = None) -> int:
    """Checks shards and prints one line each and a summary; goes on after a bad one.

    Args:
        paths: shards or folders.
        manifest_folder: with it, rows are compared with the photographs of the data set.

    Returns:
        1 if any shard is bad or missing, else 0.

    Raises:
        DataError: the manifest cannot be read.
    """
    manifests: dict[str, Manifest] = {}

    def manifest_of(split: str) -> Manifest | None:
        if manifest_folder is None:
            return None
        if split not in manifests:
            manifests[split] = load_manifest(manifest_folder, split)
        return manifests[split]

    good: list[ShardSummary] = []
    bad = 0
    for path in paths:
        try:
            shards, absent = _with_missing(path)
        except LabelError as error:
            _say(f"BAD  {error}")
            bad += 1
            continue
        before = len(good)
        for shard in shards:
            try:
                line, summary = _verified(shard, manifest_of)
                good.append(summary)
                _say(f"ok   {line}")
            except LabelError as error:
                _say(f"BAD  {error}")
                bad += 1
        for shard in absent:
            _say(f"BAD  shard {shard}: missing. Run snakemake labels.")
            bad += 1
        if (
            path.is_dir() and not absent and len(good) == before + len(shards)
        ):  # each is whole: do they belong together?
            for split in shards_in(path):
                try:
                    LabelStore(path, split)
                except LabelError as error:
                    _say(f"BAD  {error}")
                    bad += 1
    verdict = f"{bad} BAD" if bad else "none bad"
    _say(f"{len(good) + bad} checked: {len(good)} ok, {verdict}; the good ones hold {_counted(_total(good))}")
    return 1 if bad else 0


def _verified(shard: Path, manifest_of: Callable[[str], Manifest | None]) -> tuple[str, ShardSummary]:
    if not shard.is_file():
        raise LabelError(f"shard {shard}: missing. Run snakemake labels.")
    summary = verify_shard(shard, read_marker(shard)["sha256"])
    attributes = read_attributes(shard)
    check_name(shard, attributes)
    check_marker(shard, attributes, read_index(shard)[1])
    manifest = manifest_of(attributes.split)
    if manifest is not None:
        _compare(shard, attributes, manifest)
    return (
        f"{shard}: {_counted(summary)}, as its marker says{', photographs as in the manifest' if manifest else ''}",
        summary,
    )


def _compare(shard: Path, attributes: ShardAttributes, manifest: Manifest) -> None:
    """Compares a shard's rows with the photographs of the manifest.

    Raises:
        LabelError: a photograph has no row, a row has no photograph, or a photograph has changed since.
    """
    ids = read_index(shard)[0]
    wanted = np.flatnonzero(manifest.sample_id % np.uint64(attributes.total) == np.uint64(attributes.shard))
    without = wanted[~np.isin(manifest.sample_id[wanted], ids)]
    foreign = ids[~np.isin(ids, manifest.sample_id[wanted])]
    found = []
    if len(without):
        found.append(f"no row for {_some([manifest.path(int(row)) for row in without[:NAMED]], len(without))}")
    if len(foreign):
        named = [f"{identifier:#018x}" for identifier in foreign[:NAMED].tolist()]
        found.append(f"rows of no photograph of it: {_some(named, len(foreign))}")
    told = attributes.total == len(manifest.shard_digests)
    if not found and told and manifest.shard_digests[attributes.shard] != attributes.manifest_digest:
        found.append("the same names, but photographs of other sizes or classes")
    if found:
        raise LabelError(
            f"shard {shard}: does not fit the manifest of split {manifest.split}: {'; '.join(found)}. Delete the shard and its "
            ".done marker, then run snakemake labels, or give the manifest that it was made from."
        )


def _some(names: Sequence[str], count: int) -> str:
    return f"{', '.join(names)}{f' and {count - len(names)} more' if count > len(names) else ''}"


def _counted(summary: ShardSummary) -> str:
    pending = f", {summary.pending} pending" if summary.pending else ""
    return f"{summary.images} images, {summary.unreadable} unreadable{pending}, {summary.size_bytes} bytes"


# --- merge ---


def merge_shards(
    paths: Sequence[Path],
    out: Path,
    split: str,
    shards: int | None,
    manifest_folder: Path | None,
    storage: str | None = None,
) -> int:
    """Merges shards into a folder.

    Raises:
        LabelError: nothing to merge, attributes or labels that contradict, a destination that is in use.
    """
    sources = _sources(paths, split)
    if out.is_dir() and shards_in(out).get(split):
        raise LabelError(f"--out {out}: holds shards of split {split!r} already. Give a new folder, or delete them.")
    plan = plan_merge(sources)
    plan = plan.stored_as(storage) if storage else plan
    manifest = load_manifest(manifest_folder, split) if manifest_folder else None
    total = len(manifest.shard_digests) if manifest else plan.attributes[0].total
    total = total if shards is None else shards
    if total < 1:
        raise ConfigError(f"--shards {total}: expected at least 1.")
    if manifest is not None:
        _check_complete(plan.sample_id, manifest, total)
    written, untold = [], 0
    for shard in range(total):
        if manifest is None:
            ids, digest = plan.ids_of_shard(shard, total), plan.digest_of_shard(shard, total)
        else:
            ids, digest = manifest.sample_id[manifest.rows_of_shard(shard)], manifest.shard_digests[shard]
        untold += digest.startswith(IDS_ONLY)
        written.append(write_merged(plan, out, shard, total, ids, digest))
    _say(
        f"{out}: {total} shards of split {split!r} from {len(sources)}; {_counted(_total(written))}; {plan.repeated} repeated "
        f"rows left out, {plan.replaced} unreadable or pending ones replaced"
    )
    if untold:
        _say(
            f"{untold} of the shards say which ids they hold, but not which manifest's photographs: training refuses them. Merge "
            "with --manifest to train on them."
        )
    return 0


def _sources(paths: Sequence[Path], split: str) -> list[Path]:
    """Shards of the split that the paths mean, each once."""
    found: dict[Path, Path] = {}
    for path in paths:
        shards = shards_in(path).get(split, []) if path.is_dir() else [path]
        if not shards:
            raise LabelError(f"labels {path}: no shards of split {split!r} there. Correct the path, or give --split.")
        for shard in shards:
            said = read_attributes(shard).split
            if said != split:
                raise LabelError(
                    f"shard {shard}: is of split {said!r}, to be merged is {split!r}. Give --split {said}."
                )
            found.setdefault(shard.resolve(), shard)
    return list(found.values())


def _check_complete(ids: np.ndarray[tuple[int], np.dtype[np.uint64]], manifest: Manifest, total: int) -> None:
    if total != len(manifest.shard_digests):
        raise ConfigError(
            f"--shards {total}: the manifest has {len(manifest.shard_digests)} shards and no digests for another number. Leave "
            "--shards out, or set dataset.shards and make the manifest anew."
        )
    without = np.flatnonzero(~np.isin(manifest.sample_id, ids))
    if len(without):
        named = _some([manifest.path(int(row)) for row in without[:NAMED]], len(without))
        raise LabelError(f"no source has a row for {named}. Add the shards that hold them, or run snakemake labels.")
    foreign = ids[~np.isin(ids, manifest.sample_id)]
    if len(foreign):
        named = _some([f"{identifier:#018x}" for identifier in foreign[:NAMED].tolist()], len(foreign))
        raise LabelError(
            f"samples {named} are no photographs of the manifest. Give the manifest that they were made from."
        )


# --- export ---


def export_released(folder: Path, out: Path, transposed: bool, manifest: Manifest) -> int:
    """Writes the released layout.

    Args:
        folder: of the shards.
        out: DIR/CLASS/NAME.pt is written.
        transposed: `--axes released`.
        manifest: has the file names.

    Raises:
        LabelError: labels that the layout cannot hold or tell apart, or that are missing.
        OutputError: a file cannot be written.
    """
    store = LabelStore(folder, manifest.split)
    check_class_count(store.num_classes, f"labels {folder}")
    if transposed and (store.grid[0] != store.grid[1] or store.grid[1] < RELEASED_COLS):
        raise LabelError(
            f"labels {folder}: maps of {store.grid[0]} x {store.grid[1]} cells; the released loader reads square ones of at "
            f"least {RELEASED_COLS} x {RELEASED_COLS}. Export --axes right for another reader."
        )
    paths = [manifest.path(row) for row in range(len(manifest))]
    if shared := shared_names(paths):
        name, members = next(iter(shared.items()))
        raise LabelError(
            f"{members[0]} and {members[1]} would both be {name}, because the released layout cuts names at the first dot "
            f"({len(shared)} such names). Rename the photographs, or use the shards."
        )
    readable = np.flatnonzero(store.status_of(manifest.sample_id) == STATUS_OK)
    for start in range(0, len(readable), ROWS_AT_ONCE):
        rows = readable[start : start + ROWS_AT_ONCE]
        batch = store.get_many(manifest.sample_id[rows])
        for place, row in enumerate(rows.tolist()):
            write_released(
                out / released_name(paths[row]), batch.scores[place], batch.classes[place], transposed=transposed
            )
    left_out = len(manifest) - len(readable)
    _say(f"{out}: {len(readable)} files, {left_out} photographs left out because they have no label")
    if transposed and store.view != "squash":
        _say(f"the labels are of view {store.view}: the released loader takes them for the whole photograph")
    return 0


# --- shared ---


def _with_missing(path: Path) -> tuple[list[Path], list[Path]]:
    """Shards that a path means, and those of a folder that should be there and are not."""
    if not path.is_dir():
        return [path], []
    groups = shards_in(path)
    if not groups:
        raise LabelError(f"labels {path}: no shards there. Run snakemake labels, or correct the path.")
    absent = [shard for group in groups.values() for shard in missing_shards(group)]
    return [shard for group in groups.values() for shard in group], absent


def _grouped(paths: Sequence[Path]) -> list[list[Path]]:
    """Files of one folder and split together, in the order given."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        for shard in _with_missing(path)[0]:
            split = shard.name.rsplit("-of-", 1)[0].rsplit("-", 1)[0]
            groups.setdefault((shard.parent, split), []).append(shard)
    return list(groups.values())


def _agree(attributes: Sequence[ShardAttributes], name: str) -> bool:
    if name == "shard":
        return False
    return all(getattr(one, name) == getattr(attributes[0], name) for one in attributes)


def _say_table(lines: Sequence[Sequence[str]]) -> None:
    """Prints columns: text left, numbers right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (
            cell.rjust(width) if column and _is_number(lines, column) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        _say(f"  {'  '.join(cells)}".rstrip())


def _is_number(lines: Sequence[Sequence[str]], column: int) -> bool:
    return len(lines[0]) > 2 and all(line[column][-1:] in "0123456789-" for line in lines[1:])


def _say(line: str) -> None:
    print(line)  # noqa: T201
