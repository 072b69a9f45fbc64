"""The decode cache: the pixels of the files, one writer, whole after a kill, never another data set's."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import machine_settings, write_manifests
from tokenlabel.core.errors import DataError, OutputError, UnreadableImageError
from tokenlabel.data import photographs as module
from tokenlabel.data.manifest import Manifest
from tokenlabel.data.photographs import CachedPhotographs, Photographs, cache_path, open_photographs
from tokenlabel.data.readers import ByteSource

SIDE = 64


@pytest.fixture
def place(photographs: Path, tmp_path: Path) -> tuple[Manifest, dict[str, Any]]:
    """The demo's training photographs; the third is truncated, the fourth small, the fifth stands on its side."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for folder in sorted((photographs / split).iterdir())[:5]:
            (root / split).mkdir(parents=True, exist_ok=True)
            (root / split / folder.name).mkdir()
            for path in folder.iterdir():
                (root / split / folder.name / path.name).write_bytes(path.read_bytes())
    files = sorted((root / "train").rglob("*.jpg"))
    files[2].write_bytes(files[2].read_bytes()[:600])
    Image.effect_noise((50, 40), 60).convert("RGB").save(files[3])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((300, 200), 60).convert("RGB").save(files[4], exif=exif)
    machine = machine_settings(root, decode_cache=str(tmp_path / "cache"), threads=2)
    return write_manifests(tmp_path / "manifest", machine)["train"], machine


def test_cached_pixels_equal_those_of_the_files(place: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, machine = place
    plain = open_photographs(manifest, machine | {"decode_cache": None}, SIDE)
    cached = open_photographs(manifest, machine, SIDE)
    assert type(plain) is Photographs
    assert isinstance(cached, CachedPhotographs)
    for row in range(len(manifest)):
        if row == 2:
            with pytest.raises(UnreadableImageError):
                plain.pixels(row)
            with pytest.raises(UnreadableImageError):
                cached.pixels(row)
            continue
        pixels = cached.pixels(row)
        assert torch.equal(pixels, plain.pixels(row))
        assert min(pixels.shape[1:]) == (40 if row == 3 else SIDE)
    assert cached.pixels(4).shape == (3, 96, SIDE)  # upright
    again = pickle.loads(pickle.dumps(cached))  # as a spawned worker gets it
    assert torch.equal(again.pixels(5), cached.pixels(5))
    full = open_photographs(manifest, machine, None)
    assert min(full.pixels(0).shape[1:]) > SIDE


def test_a_read_error_that_passes_is_not_cached(
    place: tuple[Manifest, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, machine = place
    real = ByteSource.read

    def failing(source: ByteSource, path: str, *arguments: Any) -> bytes:
        if path == manifest.path(5):
            raise UnreadableImageError("the file cannot be read: Input/output error")
        return real(source, path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ByteSource, "read", failing)
        cached = open_photographs(manifest, machine, SIDE)
        with pytest.raises(UnreadableImageError, match="Input/output error"):
            cached.pixels(5)
    plain = open_photographs(manifest, machine | {"decode_cache": None}, SIDE)
    for row in (4, 5, 6, len(manifest) - 1):
        assert torch.equal(cached.pixels(row), plain.pixels(row))
    with pytest.raises(UnreadableImageError, match="could not be decoded when the cache was filled"):
        cached.pixels(2)  # bytes that are damaged stay so


def test_a_cache_is_filled_once_and_belongs_to_its_photographs(place: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, machine = place
    open_photographs(manifest, machine, SIDE)
    path = cache_path(Path(machine["decode_cache"]), manifest, SIDE)
    written = path.stat().st_mtime_ns
    open_photographs(manifest, machine, SIDE)
    assert path.stat().st_mtime_ns == written
    assert cache_path(path.parent, manifest, SIDE + 1) != path
    first = sorted(Path(machine["data_root"], "train").rglob("*.jpg"))[0]
    first.write_bytes(first.read_bytes() + b"\0")
    changed = write_manifests(path.parent, machine)["train"]
    assert cache_path(path.parent, changed, SIDE) != path


def test_a_cache_of_another_length_is_refused(place: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, machine = place
    open_photographs(manifest, machine, SIDE)
    path = cache_path(Path(machine["decode_cache"]), manifest, SIDE)
    with open(path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"Delete it; the next training fills it again"):
        open_photographs(manifest, machine, SIDE)


@pytest.mark.parametrize("kept_bytes", [None, 0, 8, -3], ids=["missing", "empty", "short", "torn"])
def test_a_cache_without_its_sizes_is_refused(place: tuple[Manifest, dict[str, Any]], kept_bytes: int | None) -> None:
    manifest, machine = place
    open_photographs(manifest, machine, SIDE)
    path = cache_path(Path(machine["decode_cache"]), manifest, SIDE)
    sizes = path.with_suffix(".sizes")
    whole = sizes.read_bytes()
    sizes.unlink() if kept_bytes is None else sizes.write_bytes(whole[:kept_bytes])
    with pytest.raises(DataError, match=r"photographs, expected .*Delete it; the next training fills it again"):
        open_photographs(manifest, machine, SIDE)
    path.unlink()  # as the line says
    assert torch.equal(
        open_photographs(manifest, machine, SIDE).pixels(0), Photographs(manifest, machine, SIDE).pixels(0)
    )
    assert sizes.read_bytes() == whole


def test_a_place_that_cannot_be_written_is_named(place: tuple[Manifest, dict[str, Any]], tmp_path: Path) -> None:
    manifest, machine = place
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written"):
        open_photographs(manifest, machine | {"decode_cache": str(tmp_path / "file" / "cache")}, SIDE)


FILL = """
import json, sys
from pathlib import Path
from tokenlabel.data import photographs
from tokenlabel.data.manifest import load_manifest
photographs.BLOCK = 2
stored = photographs._stored
def slowly(*words):
    import time
    time.sleep(0.05)
    return stored(*words)
photographs._stored = slowly
machine = json.loads(sys.argv[2])
photographs.open_photographs(load_manifest(Path(sys.argv[1]), "train"), machine, 64)
"""


def test_a_killed_filling_is_continued(
    place: tuple[Manifest, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle; then both files get torn tails. What was there is kept, what is torn is written again."""
    manifest, machine = place
    path = cache_path(Path(machine["decode_cache"]), manifest, SIDE)
    part, sizes = path.with_suffix(".part"), path.with_suffix(".sizes")
    process = subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path / "manifest"), json.dumps(machine)])
    deadline = time.monotonic() + 60
    while not (sizes.exists() and sizes.stat().st_size >= 8 * 8):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists()
    with open(part, "ab") as file:
        file.write(b"torn pixels")
    with open(sizes, "ab") as file:
        file.write(b"\7\0\0\0\7")
    before = part.read_bytes()[:1000]
    calls: list[int] = []
    stored = module._stored
    monkeypatch.setattr(module, "_stored", lambda source, row: calls.append(row) or stored(source, row))
    cached = open_photographs(manifest, machine, SIDE)
    assert 0 < len(calls) <= len(manifest) - 8
    assert path.read_bytes()[:1000] == before
    plain = Photographs(manifest, machine, SIDE)
    for row in set(range(len(manifest))) - {2}:
        assert torch.equal(cached.pixels(row), plain.pixels(row))
    assert not np.any(np.fromfile(sizes, "<u4").reshape(-1, 2)[2])


@pytest.mark.campaign
def test_processes_that_start_together_fill_one_cache(place: tuple[Manifest, dict[str, Any]], tmp_path: Path) -> None:
    manifest, machine = place
    command = [sys.executable, "-c", FILL, str(tmp_path / "manifest"), json.dumps(machine)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(90) for process in processes] == [0, 0]
    cached = open_photographs(manifest, machine, SIDE)
    assert torch.equal(cached.pixels(7), Photographs(manifest, machine, SIDE).pixels(7))
