"""How far a shard is: a bar on a terminal, a plain line every half minute in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from ..core.log import logger

LINE_SECONDS = 30.0


class Progress:
    """Counts photographs of a shard and shows rate, remaining time and how many could not be read.

    Args:
        title: of the bar.
        total: photographs of the shard.
        done: that earlier jobs have labeled.
        unreadable: among those.
    """

    def __init__(self, title: str, total: int, done: int, unreadable: int) -> None:
        self.total, self.done, self.unreadable = total, done, unreadable
        self._started_with, self._started = done, time.monotonic()
        self._said = self._started
        to_a_file = any(isinstance(handler, logging.FileHandler) for handler in logger.handlers)
        self._bar = None
        if sys.stderr.isatty() and not to_a_file:
            self._bar = tqdm(total=total, initial=done, desc=title, unit="image", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, images: int, unreadable: int) -> None:
        """Counts a batch."""
        self.done += images
        self.unreadable += unreadable
        if self._bar is not None:
            self._bar.set_postfix(unreadable=self.unreadable, refresh=False)
            self._bar.update(images)
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            rate = self.images_per_s
            logger.info(
                "%d of %d photographs, %.1f images/s, %.0f s left, %d unreadable",
                self.done, self.total, rate, (self.total - self.done) / max(rate, 1e-9), self.unreadable,
            )  # fmt: skip

    @property
    def images_per_s(self) -> float:
        """Rate of this job."""
        return (self.done - self._started_with) / max(time.monotonic() - self._started, 1e-9)
