"""Near-duplicate photographs: the same picture encoded, resized, brightened, mirrored or trimmed by 2 %, by a difference hash.

Called where a validation split is made, so that no near-duplicate of a training photograph is measured, and by the survey of a
folder. Of 16 x 16 brightness differences at most THRESHOLD may differ: on 20 photographs x 8 alterations all but a trim of 5 % are
found; of 60 million pairs of 11,000 different photographs of 64 x 64 pixels 8 are called near. Overlapping crops are not.
Source: the dHash of N. Krawetz (2013), at 256 bits.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..core.errors import DataError
from ..core.log import logger
from .images import UnreadableImageError, decode_image

SIDE = 16
THRESHOLD = 32  # of SIDE x SIDE bits
CORRELATION = 0.97  # of the 16 x 17 grey levels; objects on a plain background share bits, but not levels
MOST_COMPARED = (
    100_000  # photographs; comparing all pairs of more takes minutes, so only equal hashes are grouped there
)
BLOCK = 512


def grey_levels(picture: Image.Image) -> NDArray[np.uint8]:
    """Brightness of 16 x 17 cells, uint8."""
    return np.asarray(picture.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def difference_hash(grey: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Whether each of 16 x 16 cells is darker than its right neighbour, uint64 (4,)."""
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)


def find_near_duplicates(
    read: Callable[[int], bytes], count: int, threads: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Groups photographs that show the same picture.

    Args:
        read: bytes of photograph 0 to count - 1.
        count: of photographs.
        threads: that decode.

    Returns:
        int64 (count,), a number for each group, an unreadable photograph's own; bool (count,), whether it could be read.
    """
    hashes = np.zeros((2, count, SIDE * SIDE // 64), dtype=np.uint64)  # as it is, mirrored
    levels = np.zeros((count, SIDE, SIDE + 1), dtype=np.uint8)
    readable = np.zeros(count, dtype=bool)

    def note(index: int) -> None:
        try:
            picture = _decoded_small(read(index))
        except (UnreadableImageError, DataError):
            return
        levels[index] = grey_levels(picture)
        hashes[0, index] = difference_hash(levels[index])
        hashes[1, index] = difference_hash(levels[index, :, ::-1])
        readable[index] = True

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(note, range(count)):
            pass
    return _groups(hashes, levels, np.flatnonzero(readable), count), readable


def _decoded_small(encoded: bytes) -> Image.Image:
    """A photograph of at least 32 pixels a side; JPEGs are decoded at an eighth of their size where that is enough."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            if picture.format == "JPEG" and not picture.getexif().get(0x0112, 1) > 1:
                picture.draft("L", (2 * SIDE, 2 * SIDE))
                picture.load()
                return picture.copy()
    except Exception:  # noqa: BLE001 - decode_image meets the same and says why
        pass
    return decode_image(encoded)


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether grey levels (pairs, 16, 17) agree but for brightness and contrast."""
    first, second = (side.reshape(len(side), SIDE * (SIDE + 1)).astype(np.float32) for side in (one, other))
    first, second = (side - side.mean(1, keepdims=True) for side in (first, second))
    size = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    same_flat = (size == 0) & (one == other).all((1, 2))
    alike: NDArray[np.bool_] = ((first * second).sum(1) > CORRELATION * np.maximum(size, 1e-6)) | same_flat
    return alike


def _groups(
    hashes: NDArray[np.uint64], levels: NDArray[np.uint8], known: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    plain, mirrored = hashes[0, known], hashes[1, known]
    first: list[NDArray[np.int64]] = []
    second: list[NDArray[np.int64]] = []
    if len(known) > MOST_COMPARED:
        logger.warning("%d photographs: only identical ones are looked for, not near-duplicates", len(known))
        _, inverse = np.unique(plain, axis=0, return_inverse=True)
        leader = np.full(inverse.max() + 1, -1)
        leader[inverse[::-1]] = known[::-1]
        first, second = [leader[inverse]], [known]
    else:
        for start in range(0, len(known), BLOCK):
            block = plain[start : start + BLOCK, None]
            for other, seen in ((plain, levels), (mirrored, levels[:, :, ::-1])):
                near = np.bitwise_count(block ^ other[None, start:]).sum(-1, dtype=np.int16) <= THRESHOLD
                rows, columns = np.nonzero(near)
                rows, columns = known[start + rows], known[start + columns]
                apart = rows != columns
                rows, columns = rows[apart], columns[apart]
                kept = _alike(levels[rows], seen[columns])
                first.append(rows[kept])
                second.append(columns[kept])
    one, two = (np.concatenate(side) if side else np.empty(0, np.int64) for side in (first, second))
    pairs = coo_array((np.ones(len(one), dtype=np.int8), (one, two)), shape=(count, count))
    _, groups = connected_components(pairs, directed=False)
    return np.asarray(groups, dtype=np.int64)
