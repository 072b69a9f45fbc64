"""The order in which an epoch reads its photographs: a function of the seed and the epoch, whoever reads them.

Shuffled: a permutation. Sequential: runs of neighbours, as they lie in their archive, are taken in a drawn order, as many as a
buffer holds, and shuffled inside it. The buffer is the page cache: one reader asks the kernel for the runs of the next buffer,
each from end to end, while the photographs of this one are decoded. So no process holds a buffer of its own, their number
changes nothing, and an epoch can be entered anywhere. Called by the training set.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.seeds import derived_seed
from ..data.manifest import Manifest
from ..data.readers import ByteSource

RUN = 128  # photographs: some 14 MB of ImageNet, for which a disk moves its head once


class ReadingOrder:
    """A recipe's order over the photographs that take part.

    Args:
        manifest: of the split.
        rows: int64 (photographs,), those that take part.
        recipe: read_order, shuffle_buffer.
        seed: of the run.
    """

    def __init__(self, manifest: Manifest, rows: NDArray[np.int64], recipe: dict[str, Any], seed: int) -> None:
        self._manifest, self._seed = manifest, seed
        self._is_sequential = recipe["read_order"] == "sequential"
        self._runs_a_buffer = max(1, recipe["shuffle_buffer"] // RUN)
        # stable: folders, whose offsets are all -1, keep the order of their paths
        self._rows = rows[np.lexsort((manifest.offset[rows], manifest.archive[rows]))] if self._is_sequential else rows
        self._run_of = np.full(len(manifest), -1, np.int64)
        self._run_of[self._rows] = np.arange(len(self._rows)) // RUN
        self._asked = (-1, -1)  # epoch, and last buffer that the kernel was asked for

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Every row once, (photographs,)."""
        rng = np.random.default_rng(derived_seed("order", self._seed, epoch))
        if not self._is_sequential:
            return self._rows[rng.permutation(len(self._rows))]
        return np.concatenate([rng.permutation(self._rows_of(runs)) for runs in self.buffers(epoch)])

    def buffers(self, epoch: int) -> list[NDArray[np.int64]]:
        """Numbers of the runs in each buffer of an epoch, in the order of reading."""
        count = -(-len(self._rows) // RUN)
        runs = np.random.default_rng(derived_seed("runs", self._seed, epoch)).permutation(count)
        return np.split(runs, range(self._runs_a_buffer, count, self._runs_a_buffer))

    def _rows_of(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([self._rows[run * RUN : (run + 1) * RUN] for run in runs.tolist()])

    def spans(self, runs: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """Archive, first byte and length of what runs of photographs take."""
        found = []
        for run in runs.tolist():
            rows = self._rows[run * RUN : (run + 1) * RUN].tolist()
            for archive, members in itertools.groupby(rows, key=lambda row: int(self._manifest.archive[row])):
                places = list(members)
                start = int(self._manifest.offset[places[0]])
                end = int(self._manifest.offset[places[-1]] + self._manifest.size_bytes[places[-1]])
                found.append((archive, start, end - start))
        return found

    def read_ahead(self, source: ByteSource, epoch: int, row: int) -> None:
        """Asks the kernel for the bytes of the buffer that a row lies in and of the next one, once each.

        Args:
            source: of the photographs; only archives are read ahead.
            epoch, row: what is read now.
        """
        if not self._is_sequential or not source.has_archives:
            return
        buffers = self.buffers(epoch)
        now = next(number for number, runs in enumerate(buffers) if self._run_of[row] in runs)
        first = max(now, self._asked[1] + 1) if self._asked[0] == epoch else now
        wanted = buffers[first : now + 2]
        if wanted:
            self._asked = (epoch, first + len(wanted) - 1)
            spans = [span for runs in wanted for span in self.spans(runs)]
            # the kernel's queue may make the caller wait
            threading.Thread(target=source.will_read, args=(spans,), daemon=True, name="read ahead").start()
