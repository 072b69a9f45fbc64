"""What runs beside the forward pass: threads that read photographs ahead, and one behind that writes parts and assembles them.

Guarantees that batches come in the order of the rows whatever the number of threads (a resumed shard meets the same batches), and
that a bounded number of photographs is in memory: AHEAD batches before the annotator, BEHIND after it, PART_IMAGES maps in the
part that is being filled. Threads, because decoding, resizing and compressing hold no Python lock. Used by `shard_job`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.log import logger
from ..data.images import UnreadableImageError
from ..data.manifest import Manifest
from ..data.pixels import read_view
from ..labels.records import STATUS_OK, STATUS_UNREADABLE, LabelRows, concatenate_rows
from ..labels.shards import ShardAssembly, write_part
from .labeling import MapBatch

AHEAD, BEHIND = 3, 16  # batches; behind the annotator wait maps only, 16 kB a photograph
PART_IMAGES = 256  # closes in an eighth of a second: little is left to write at the end, and a job can stop at once
Outcome = tuple[tuple[int, int], str]  # height and width, reason why it could not be read


@dataclass
class PhotographBatch:
    """Photographs on their way to the annotator.

    Attributes:
        rows: of the manifest.
        images: uint8 (batch, 3, image_px, image_px), channels last; zeros where unreadable. A buffer that is used again.
        sizes: height and width of each photograph, (0, 0) where unreadable.
        reasons: why it is unreadable, or "".
    """

    rows: list[int]
    images: torch.Tensor
    sizes: list[tuple[int, int]]
    reasons: list[str]
    copied: torch.cuda.Event | None = None

    def to(self, device: torch.device) -> torch.Tensor:
        """The images on a device; on CUDA the copy overlaps with what is being computed."""
        if device.type != "cuda":
            return self.images.to(device)
        images = self.images.to(device, non_blocking=True)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.copied.record()
        return images


class BatchReader:
    """Yields the batches of some rows; each is valid until the next but one is asked for.

    Args:
        manifest, machine: where the photographs are.
        rows: of the manifest, in order.
        batch: photographs in each batch but the last.
        threads: that decode; 0: none, the caller's own.
        image_px, view, interpolation: of the annotator.
        pinned: whether buffers are page-locked, for copies to a GPU.
    """

    def __init__(
        self, manifest: Manifest, machine: dict[str, Any], rows: NDArray[np.int64], *, batch: int, threads: int,
        image_px: int, view: str, interpolation: str, pinned: bool,
    ) -> None:  # fmt: skip
        self._manifest, self._source = manifest, manifest.open_source(machine)
        self._groups = [rows[start : start + batch].tolist() for start in range(0, len(rows), batch)]
        self._batch, self._threads, self._pinned = batch, threads, pinned
        self._image_px, self._view, self._interpolation = image_px, view, interpolation
        self.decoding_s = 0.0  # summed over the threads

    def __iter__(self) -> Iterator[PhotographBatch]:
        if not self._threads:
            buffer = self._new_buffer()
            for group in self._groups:
                yield self._finished(group, buffer, [self._read(row, buffer, n) for n, row in enumerate(group)])
            return
        compute_threads = torch.get_num_threads()
        groups = deque(self._groups)
        free = [self._new_buffer() for _ in range(min(AHEAD + 2, len(groups)))]  # two are with the consumer
        under_way: deque[tuple[list[int], torch.Tensor, list[Future[Outcome]]]] = deque()
        used: deque[PhotographBatch] = deque()
        with ThreadPoolExecutor(self._threads, "decode", torch.set_num_threads, (1,)) as pool:
            try:
                while groups or under_way:
                    while groups and free:
                        group, buffer = groups.popleft(), free.pop()
                        futures = [pool.submit(self._read, row, buffer, n) for n, row in enumerate(group)]
                        under_way.append((group, buffer, futures))
                    # a decoding thread's own limit must not become that of the annotator's
                    if torch.get_num_threads() != compute_threads:
                        torch.set_num_threads(compute_threads)
                    group, buffer, futures = under_way.popleft()
                    batch = self._finished(group, buffer, [future.result() for future in futures])
                    yield batch
                    used.append(batch)
                    if len(used) == 2:
                        done = used.popleft()
                        if done.copied is not None:
                            done.copied.synchronize()
                        free.append(done.images if len(done.images) == self._batch else self._new_buffer())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _new_buffer(self) -> torch.Tensor:
        shape = (self._batch, self._image_px, self._image_px, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned).permute(0, 3, 1, 2)

    def _read(self, row: int, buffer: torch.Tensor, place: int) -> Outcome:
        started = time.perf_counter()
        size, reason = (0, 0), ""
        try:
            encoded = self._manifest.read(self._source, row)
            pixels, size = read_view(encoded, self._image_px, self._view, self._interpolation)
            buffer[place].copy_(pixels)
        except UnreadableImageError as error:
            buffer[place].zero_()
            reason = str(error)
        self.decoding_s += time.perf_counter() - started
        return size, reason

    @staticmethod
    def _finished(group: list[int], buffer: torch.Tensor, outcomes: Sequence[Outcome]) -> PhotographBatch:
        sizes, reasons = zip(*outcomes, strict=True)
        return PhotographBatch(group, buffer[: len(group)], list(sizes), list(reasons))


class PartWriter:
    """Turns finished batches into closed parts and these into the shard, in a thread of its own.

    A part closes when it has been open for `part_seconds`, or holds PART_IMAGES.

    Args:
        assembly: of the shard; every part goes into it at once.
        earlier: parts that are there already.
        folder: of the parts.
        part_seconds: see above.
        before_writing: called before each part; raises where it must not be written.
    """

    def __init__(
        self, assembly: ShardAssembly, earlier: Sequence[Path], folder: Path, part_seconds: float,
        before_writing: Callable[[], None],
    ) -> None:  # fmt: skip
        self._assembly, self._earlier, self._folder = assembly, earlier, folder
        self._next = int(earlier[-1].stem.removeprefix("part-")) + 1 if earlier else 0
        self._part_seconds, self._before_writing = part_seconds, before_writing
        self._queue: queue.Queue[Callable[[], LabelRows]] = queue.Queue(BEHIND)
        self._no_more, self._stopping = threading.Event(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="write parts", daemon=True)
        self.images = 0  # in closed parts
        self.waiting_s = self.fetching_s = self.writing_s = self.assembling_s = 0.0
        self._thread.start()

    def put(self, rows: Callable[[], LabelRows]) -> None:
        """Hands a batch over; `rows` is called by the writer's thread, where it may wait for the device.

        Raises:
            whatever went wrong while writing earlier ones.
        """
        started = time.perf_counter()
        while not self._no_more.is_set():
            self._raise_error()
            try:
                self._queue.put(rows, timeout=0.1)
                break
            except queue.Full:
                continue
        self.waiting_s += time.perf_counter() - started

    def close(self) -> None:
        """Writes what has been handed over and ends.

        Raises:
            whatever went wrong while writing.
        """
        self._no_more.set()
        self._thread.join()
        self._raise_error()

    def stop(self, timeout_s: float) -> None:
        """Saves what has been handed over as a last part, for a process that is to end; called by another thread than `put`.

        Raises:
            whatever went wrong while writing.
        """
        self._stopping = True
        self._no_more.set()
        self._thread.join(timeout_s)
        self._raise_error()

    def abandon(self) -> None:
        """Ends without an error of its own: another one is under way."""
        self._no_more.set()
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write_parts()
        except BaseException as error:  # noqa: BLE001 - raised again by put or close, in the job's own thread
            self._error = error

    def _write_parts(self) -> None:
        for part in self._earlier:
            if self._stopping:
                break
            self._assemble(part)
        open_rows: list[LabelRows] = []
        opened = time.monotonic()
        while True:
            # also while a long pass lets nothing through
            if open_rows and (time.monotonic() - opened > self._part_seconds or _count(open_rows) >= PART_IMAGES):
                self._write(open_rows)
                open_rows, opened = [], time.monotonic()
            try:
                rows = self._queue.get(timeout=0.05)
            except queue.Empty:
                if self._no_more.is_set():
                    break
                continue
            started = time.perf_counter()
            open_rows.append(rows())
            self.fetching_s += time.perf_counter() - started
        if open_rows:
            self._write(open_rows)

    def _write(self, pieces: list[LabelRows]) -> None:
        started = time.perf_counter()
        self._before_writing()
        path = self._folder / f"part-{self._next:05d}.h5"
        rows = concatenate_rows(pieces)
        write_part(path, rows, self._assembly.attributes.storage)
        logger.info("part %d: %d photographs", self._next, len(rows.sample_id))
        self._next += 1
        self.images += len(rows.sample_id)
        self.writing_s += time.perf_counter() - started
        if not self._stopping:
            self._assemble(path)

    def _assemble(self, part: Path) -> None:
        started = time.perf_counter()
        self._assembly.add(part)
        self.assembling_s += time.perf_counter() - started


def _count(pieces: list[LabelRows]) -> int:
    return sum(len(piece.sample_id) for piece in pieces)


def rows_of_batch(manifest: Manifest, batch: PhotographBatch, maps: MapBatch, num_classes: int) -> LabelRows:
    """A batch's rows, on the CPU; unreadable photographs with zeros and their reason.

    Raises:
        DataError: a photograph's logits are not finite.
    """
    readable = np.array([not reason for reason in batch.reasons])
    maps.check_finite([manifest.path(row) for row in batch.rows], readable.tolist())
    blank = ~readable[:, None, None, None]
    index_type = np.uint16 if num_classes <= 65536 else np.uint32
    tail = None if maps.tail is None else np.where(blank[..., 0], np.float16(0), maps.tail.cpu().numpy())
    return LabelRows(
        sample_id=manifest.sample_id[batch.rows],
        scores=np.where(blank, np.float16(0), maps.scores.cpu().numpy()),
        classes=np.where(blank, 0, maps.classes.cpu().numpy()).astype(index_type),
        tail=tail,
        image_size=np.array(batch.sizes, dtype=np.uint32),
        status=np.where(readable, STATUS_OK, STATUS_UNREADABLE).astype(np.uint8),
        reason=list(batch.reasons),
    )
