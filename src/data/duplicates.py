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
MOST_COMPARED = (
    100_000  # photographs; comparing all pairs of more takes minutes, so only equal hashes are grouped there
)
BLOCK = 512


def difference_hash(picture: Image.Image) -> NDArray[np.uint64]:
    """Whether each of 16 x 16 cells is darker than its right neighbour, uint64 (4,)."""
    grey = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
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
    readable = np.zeros(count, dtype=bool)

    def note(index: int) -> None:
        try:
            picture = _decoded_small(read(index))
        except (UnreadableImageError, DataError):
            return
        hashes[0, index] = difference_hash(picture)
        hashes[1, index] = difference_hash(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        readable[index] = True

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(note, range(count)):
            pass
    return _groups(hashes, np.flatnonzero(readable), count), readable


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


def _groups(hashes: NDArray[np.uint64], known: NDArray[np.int64], count: int) -> NDArray[np.int64]:
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
            for other in (plain, mirrored):
                near = np.bitwise_count(block ^ other[None, start:]).sum(-1, dtype=np.int16) <= THRESHOLD
                rows, columns = np.nonzero(near)
                first.append(known[start + rows])
                second.append(known[start + columns])
    one, two = (np.concatenate(side) if side else np.empty(0, np.int64) for side in (first, second))
    pairs = coo_array((np.ones(len(one), dtype=np.int8), (one, two)), shape=(count, count))
    _, groups = connected_components(pairs, directed=False)
    return np.asarray(groups, dtype=np.int64)
