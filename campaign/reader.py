"""Reads damaged and hostile shards in a process of its own, under limits, and says what a user would have got.

usage: python -m campaign.reader < cases.json. Prints one JSON line a case; a crash or a hang inside HDF5 ends the process, and
`damage.read_all` sees which case it was.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokenlabel.core.errors import TokenLabelError
from tokenlabel.labels import LabelStore
from tokenlabel.labels.shards import marker_path, read_attributes, read_marker, verify_shard

HANG_S = 10
MEMORY_BYTES = 2**30  # address space above what the process needs to start


def main() -> int:
    """Reads {"pristine": shard, "scratch": folder, "cases": [...]} and examines one case after the other."""
    asked = json.load(sys.stdin)
    pristine = Path(asked["pristine"])
    truth = LabelStore(pristine.parent, "train")
    expected = truth.get_many(truth.ids)
    whole = pristine.read_bytes()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in asked["cases"]:
        folder = Path(case["folder"]) if "folder" in case else Path(asked["scratch"])
        if "folder" not in case:
            write_damaged(folder / pristine.name, whole, case)
            shutil.copy(marker_path(pristine), folder)
        signal.alarm(HANG_S)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = examine(folder / pristine.name, truth, expected)
        found["grew_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        signal.alarm(0)
        print(json.dumps(found), flush=True)
    return 0


def write_damaged(path: Path, whole: bytes, damage: dict[str, Any]) -> None:
    """Writes a shard cut off at `keep` bytes, with `writes` (offset, hexadecimal bytes) over it."""
    spoiled = bytearray(whole)
    for offset, text in damage.get("writes", ()):
        data = bytes.fromhex(text)
        spoiled[offset : offset + len(data)] = data
    path.write_bytes(spoiled[: damage.get("keep", len(spoiled))])


def examine(shard: Path, truth: LabelStore, expected: Any) -> dict[str, Any]:
    """What verify says of a shard and what reading it gives: an error at opening or at reading, or the labels."""
    verified, said = tried(lambda: verify_shard(shard, read_marker(shard)["sha256"]))
    opened, store = tried(lambda: open_labels(shard))
    if opened != "ok":
        return {
            "verify": verified,
            "verify_said": said if verified != "ok" else "",
            "read": opened,
            "said": store,
            "at": "opening",
        }
    assert isinstance(store, LabelStore)
    outcome = {"verify": verified, "verify_said": said if verified != "ok" else "", "at": "reading"}
    for field in dataclasses.fields(truth.attributes):
        if getattr(store.attributes, field.name) != getattr(truth.attributes, field.name):
            return outcome | {"read": "wrong", "said": f"attribute {field.name}"}
    if not np.array_equal(store.ids, truth.ids):
        return outcome | {"read": "wrong", "said": "ids"}
    read, batch = tried(lambda: store.get_many(store.ids))
    if read != "ok":
        return outcome | {"read": read, "said": batch}
    for field in dataclasses.fields(expected):
        one, other = getattr(batch, field.name), getattr(expected, field.name)
        if not np.array_equal(one, other, equal_nan=field.name in ("scores", "tail")):
            return outcome | {"read": "wrong", "said": field.name}
    return outcome | {"read": "ok", "said": ""}


def open_labels(shard: Path) -> LabelStore:
    """Opens a shard by both ways in."""
    read_attributes(shard)
    return LabelStore(shard.parent, "train")


def tried(act: Callable[[], Any]) -> tuple[str, Any]:
    """`ok` and what came back, `refused` and the one line, or `crash` and the exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return "ok", act()
        except TokenLabelError as error:
            return "refused", str(error)
        except Exception as error:  # noqa: BLE001 - whatever else comes out is what this looks for
            return "crash", f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
