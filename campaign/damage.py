"""Trials in which a finished shard is damaged: flipped bits, cut off, blocks of zeros, blocks swapped.

Verify must find each by the digest in the marker; reading must refuse or give exactly the right labels and attributes.
"""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py

from .workplace import STEM, Workplace, fresh_folder

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 50  # damages a trial
BLOCK = 4096  # bytes
GROWTH_MB = 100  # resident memory that reading a small shard may ask for
READER = "import sys, campaign.reader; sys.exit(campaign.reader.main())"
Damage = dict[str, Any]


def flip_bits(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """50 single bits, uniform over the whole file."""
    return damage(place, seed, scratch, lambda rng, whole: _flipped(rng, whole, range(len(whole))))


def flip_bits_of_structure(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """50 single bits, uniform over what is no chunk of a data set: HDF5's own structures and the attributes."""
    outside = structure_bytes(place.reference / f"{STEM}.h5")
    return damage(place, seed, scratch, lambda rng, whole: _flipped(rng, whole, outside))


def cut_off(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """50 lengths shorter than the file."""
    return damage(place, seed, scratch, lambda rng, whole: {"keep": rng.randrange(len(whole))})


def zero_blocks(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """50 blocks of 4096 bytes that a disk gives back as zeros."""

    def zeroed(rng: random.Random, whole: bytes) -> Damage:
        start = rng.choice([start for start in range(0, len(whole), BLOCK) if any(whole[start : start + BLOCK])])
        return {"writes": [(start, bytes(len(whole[start : start + BLOCK])).hex())]}

    return damage(place, seed, scratch, zeroed)


def swap_blocks(place: Workplace, seed: int, scratch: Path) -> dict[str, Any]:
    """50 pairs of blocks of 4096 bytes in each other's place."""

    def swapped(rng: random.Random, whole: bytes) -> Damage:
        one, other = rng.sample(range(0, len(whole) - BLOCK + 1, BLOCK), 2)
        return {"writes": [(one, whole[other : other + BLOCK].hex()), (other, whole[one : one + BLOCK].hex())]}

    return damage(place, seed, scratch, swapped)


def _flipped(rng: random.Random, whole: bytes, places: Sequence[int]) -> Damage:
    offset = places[rng.randrange(len(places))]
    return {"writes": [(offset, bytes([whole[offset] ^ 1 << rng.randrange(8)]).hex())]}


def structure_bytes(shard: Path) -> list[int]:
    """Offsets of the bytes that belong to no chunk."""
    taken = bytearray(shard.stat().st_size)
    with h5py.File(shard) as file:
        for dataset in file.values():
            if dataset.chunks is None:
                continue
            for index in range(dataset.id.get_num_chunks()):
                chunk = dataset.id.get_chunk_info(index)
                taken[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\1" * chunk.size
    return [offset for offset, of_chunk in enumerate(taken) if not of_chunk]


def damage(
    place: Workplace, seed: int, scratch: Path, draw: Callable[[random.Random, bytes], Damage], count: int = AT_ONCE
) -> dict[str, Any]:
    """Damages the undisturbed shard in `count` ways and reads each.

    Returns:
        count, held, how many were refused when, and what did not hold.
    """
    pristine = place.reference / f"{STEM}.h5"
    whole, rng = pristine.read_bytes(), random.Random(seed)
    damages = [draw(rng, whole) for _ in range(count)]
    found = read_all(pristine, damages, fresh_folder(scratch))
    outcomes: collections.Counter[str] = collections.Counter()
    wrong = []
    for given, seen in zip(damages, found, strict=True):
        outcomes[f"refused at {seen['at']}" if seen["read"] == "refused" else seen["read"]] += 1
        if complaint := complaint_about(seen):
            wrong.append(
                f"at byte {[offset for offset, _ in given.get('writes', ())] or given.get('keep')}: {complaint}"
            )
    return {"count": count, "held": count - len(wrong), "outcomes": dict(outcomes), "wrong": wrong[:10]}


def complaint_about(seen: dict[str, Any], allowed: Sequence[str] = ("refused", "ok")) -> str:
    """What of an outcome is not as it should be; empty if all is.

    Args:
        seen: a line of the reader.
        allowed: what reading may come to: `refused`, `ok` (the right labels), `wrong`.
    """
    if seen["verify"] != "refused":
        return f"verify: {seen['verify']} {seen['verify_said']}"
    if seen["read"] not in allowed:
        return f"{seen['at']}: {seen['read']} {seen['said']}"
    for said in (seen["verify_said"], seen["said"]):
        if "\n" in said:
            return f"more than one line: {said!r}"
    if seen["grew_mb"] > GROWTH_MB:
        return f"{seen['at']}: took {seen['grew_mb']} MB"
    return ""


def read_all(pristine: Path, cases: Sequence[Damage], scratch: Path) -> list[dict[str, Any]]:
    """Examines cases in reader processes; one that dies is a crash of its case, and the rest goes to the next."""
    found: list[dict[str, Any]] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    while len(found) < len(cases):
        asked = {"pristine": str(pristine), "scratch": str(scratch), "cases": cases[len(found) :]}
        reader = subprocess.run(
            [sys.executable, "-c", READER], input=json.dumps(asked), capture_output=True, text=True,
            cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
        found += [json.loads(line) for line in reader.stdout.splitlines()]
        if reader.returncode:
            said = f"the process ended with {reader.returncode}: {reader.stderr[-300:]}"
            dead = {
                "verify": "crash",
                "verify_said": said,
                "read": "crash",
                "said": said,
                "at": "opening",
                "grew_mb": 0,
            }
            found.append(dead)
    return found
