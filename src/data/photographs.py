"""Decoded photographs of a split by row: from their files, or from a memory-mapped cache of uint8 pixels.

The cache holds every photograph once, shrunk to a shorter side, upright, without a header: one file of pixels, one of
sizes. Its name carries a digest of the manifest's ids and sizes, so that another data set's is never taken. It is filled by one
process, appended in blocks that a killed one resumes from, and renamed when it is whole. Called by the training's loader.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import DataError, OutputError, UnreadableImageError
from ..core.files import Lease, rename_beside
from ..core.log import logger
from .manifest import Manifest
from .pixels import decode_upright, shrink

CACHE_VERSION = 1
CHANNELS = 3
BLOCK = 256  # photographs that are written and synced at once
# height and width of what the cache has no pixels of: bytes that no decoder takes, and bytes that could not be read
UNDECODABLE, UNREAD = (0, 0), (0, 1)


class Photographs:
    """A split's photographs, decoded when asked for.

    Args:
        manifest: of the split.
        machine: roots.
        short_side_px: photographs are shrunk to this shorter side; None: full size.

    Raises:
        DataError: as `Manifest.open_source`.
    """

    def __init__(self, manifest: Manifest, machine: dict[str, Any], short_side_px: int | None) -> None:
        self.manifest = manifest
        self.source = manifest.open_source(machine)
        self.short_side_px = short_side_px

    def pixels(self, row: int) -> torch.Tensor:
        """One photograph, upright.

        Returns:
            uint8 (3, height, width), RGB.

        Raises:
            UnreadableImageError: it cannot be decoded.
            DataError: it is not what the manifest says.
        """
        return self.decode(self.encoded(row))

    def encoded(self, row: int) -> bytes:
        """The bytes of one photograph; raises as `pixels` where they cannot be read."""
        return self.manifest.read(self.source, row)

    def decode(self, encoded: bytes) -> torch.Tensor:
        """The pixels in a photograph's bytes; raises UnreadableImageError where there are none."""
        pixels = decode_upright(encoded)
        return pixels if self.short_side_px is None else shrink(pixels, self.short_side_px)


class CachedPhotographs(Photographs):
    """The same pixels, read from a finished cache; from its file what could not be read when the cache was filled.

    Args:
        manifest, machine, short_side_px: as before.
        path: of the cache's pixels.

    Raises:
        DataError: its sizes are missing, or the files are not as long as they should be.
    """

    def __init__(self, manifest: Manifest, machine: dict[str, Any], short_side_px: int, path: Path) -> None:
        super().__init__(manifest, machine, short_side_px)
        self._path = path
        self._sizes = _whole_sizes(_sizes_path(path)) if _sizes_path(path).exists() else np.empty((0, 2), np.uint32)
        self._starts = _starts(self._sizes)
        self._memory: NDArray[np.uint8] | None = None
        found, expected = path.stat().st_size, int(self._starts[-1])
        if len(self._sizes) != len(manifest) or found != expected:
            raise DataError(
                f"decode cache {path}: {found} bytes for {len(self._sizes)} photographs, expected {expected} bytes for "
                f"{len(manifest)}. Delete it; the next training fills it again."
            )

    def pixels(self, row: int) -> torch.Tensor:
        """As `Photographs.pixels`."""
        height, width = self._sizes[row].tolist()
        if (height, width) == UNREAD:  # a disk that did not answer then may do so now
            return super().pixels(row)
        if (height, width) == UNDECODABLE:
            raise UnreadableImageError("it could not be decoded when the cache was filled")
        if self._memory is None:
            self._memory = np.memmap(self._path, dtype=np.uint8, mode="r")
        stored = np.array(self._memory[self._starts[row] : self._starts[row + 1]])  # torch takes no read-only memory
        return torch.from_numpy(stored).view(height, width, CHANNELS).permute(2, 0, 1)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_memory": None}  # a pickled map would be a copy of the file


def open_photographs(manifest: Manifest, machine: dict[str, Any], short_side_px: int | None) -> Photographs:
    """Photographs of a split, out of the cache where the machine has a place for one; it is filled first where it is not.

    Args:
        manifest: of the split.
        machine: roots, decode_cache, threads.
        short_side_px: as the recipe says; None: full size, never cached.

    Raises:
        DataError: roots are missing, or a photograph is not what the manifest says.
        OutputError: the cache cannot be written.
    """
    if short_side_px is None or machine["decode_cache"] is None:
        return Photographs(manifest, machine, short_side_px)
    path = cache_path(Path(machine["decode_cache"]), manifest, short_side_px)
    if not path.exists():
        with Lease(path.with_suffix(".lease")) as lease:
            if not path.exists():  # another job filled it while this one waited
                _fill(path, Photographs(manifest, machine, short_side_px), machine["threads"], lease)
    return CachedPhotographs(manifest, machine, short_side_px, path)


def cache_path(folder: Path, manifest: Manifest, short_side_px: int) -> Path:
    """Where a split's pixels lie; the name changes with the photographs."""
    digest = hashlib.blake2b(f"decode cache {CACHE_VERSION}".encode(), digest_size=8)
    digest.update(manifest.sample_id.tobytes())
    digest.update(manifest.size_bytes.tobytes())
    return folder / f"{manifest.split}-{short_side_px}px-{digest.hexdigest()}.u8"


def _sizes_path(path: Path) -> Path:
    return path.with_suffix(".sizes")


def _whole_sizes(path: Path) -> NDArray[np.uint32]:
    """Height and width of each photograph, (photographs, 2); what a kill has left of another one is not counted."""
    numbers = np.fromfile(path, dtype="<u4")
    return numbers[: len(numbers) // 2 * 2].reshape(-1, 2)


def _starts(sizes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where each photograph begins in the file, and the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(1) * CHANNELS)])


def _fill(path: Path, photographs: Photographs, threads: int, lease: Lease) -> None:
    """Appends what is missing of a cache, block by block, and gives it its name."""
    part, sizes_path = path.with_suffix(".part"), _sizes_path(path)
    count, side = len(photographs.manifest), photographs.short_side_px or 0
    try:
        with open(part, "ab") as pixels, open(sizes_path, "ab") as sizes, ThreadPoolExecutor(threads) as pool:
            done = _whole_rows(part, sizes_path)
            sizes.truncate(done * 8)
            pixels.truncate(int(_starts(_whole_sizes(sizes_path))[-1]))
            logger.info("decode cache %s: %d of %d photographs are there", path, done, count)
            for rows in _blocks(range(done, count)):
                block = list(pool.map(lambda row: _stored(photographs, row), rows))
                lease.check()
                pixels.writelines(array.data for array in block)
                _sync(pixels)  # first the pixels, so that sizes never speak of what is not there
                sizes.write(np.array([array.shape[:2] for array in block], dtype="<u4").tobytes())
                _sync(sizes)
        lease.check()
        rename_beside(part, path.name)
    except OSError as error:
        raise OutputError(
            f"decode cache {path}: cannot be written ({error.strerror}). It takes about "
            f"{count * CHANNELS * side**2 * 4 / 3 / 1e9:.1f} GB; free space, or give another "
            "machine.decode_cache."
        ) from error


def _blocks(rows: range) -> Iterator[range]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _whole_rows(part: Path, sizes_path: Path) -> int:
    """Photographs of an interrupted cache whose size and pixels are both there."""
    ends = _starts(_whole_sizes(sizes_path))
    return int(np.searchsorted(ends, part.stat().st_size, side="right")) - 1


def _stored(photographs: Photographs, row: int) -> NDArray[np.uint8]:
    """Pixels as they lie in the file, (height, width, 3); of an unreadable photograph none, its shape says why."""
    try:
        encoded = photographs.encoded(row)
    except UnreadableImageError as error:
        logger.warning(
            "%s: cannot be read (%s); not cached, tried again when it is needed", photographs.manifest.path(row), error
        )
        return np.empty((*UNREAD, CHANNELS), np.uint8)
    try:
        return np.ascontiguousarray(photographs.decode(encoded).permute(1, 2, 0).numpy())
    except UnreadableImageError as error:
        logger.warning("%s: cannot be decoded (%s)", photographs.manifest.path(row), error)
        return np.empty((*UNDECODABLE, CHANNELS), np.uint8)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
