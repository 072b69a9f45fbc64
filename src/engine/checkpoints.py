"""The state of a training between two steps: enough to continue as if nothing had happened.

Called by the loop only; weights for other readers are `models.checkpoints`. The last two are kept. Each is written beside,
synced and renamed, and ends in the SHA-256 of what precedes it, so that a damaged one is found and the one before is taken.
Randomness needs no state: every step draws from seeds derived from (run seed, epoch, step, micro-batch).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..core.errors import CheckpointError, OutputError
from ..core.files import atomic_path, remove_leftovers, rename_beside
from ..core.log import logger
from .processes import Processes

KEPT = 2
FORMAT = 1
SHOWN = 12  # differences named in a line
TRAILER = b"\nsha256:"
TRAILER_BYTES = len(TRAILER) + 64


@dataclass(frozen=True)
class Progress:
    """Where a training stands: `step` optimiser steps of `epoch` are done.

    Attributes:
        meters: sums of the epoch so far.
        images, skipped: photographs of the finished epochs.
        changed: settings that a resumption has changed, each with both values.
    """

    epoch: int = 0
    step: int = 0
    meters: dict[str, dict[str, float]] | None = None
    images: int = 0
    skipped: int = 0
    changed: list[str] = field(default_factory=list)


class Checkpoints:
    """The checkpoints in a run's folder.

    Args:
        folder: of one seed of a run.
        digest: of spec and seed.
        settings: what the digest is of, so that a difference can be named.
        processes: of the training; the main one writes, all read.
        machine: settings of the machine that change numbers a little; a training goes on with other ones and says so.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        settings: dict[str, Any],
        processes: Processes,
        machine: dict[str, Any] | None = None,
    ) -> None:
        self._folder, self._digest, self._settings, self._processes = folder, digest, settings, processes
        self._machine = machine or {}
        self.write_s = 0.0  # of the last one
        self._last = 0  # number of the one that was read or written last

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob("checkpoint-*.pt"), reverse=True)

    def write(self, number: int, progress: Progress, states: dict[str, Any]) -> Path:
        """Writes the state after optimiser step `number` of the training, and removes all but the last two.

        Raises:
            OutputError: the folder cannot be written.
        """
        if number < self._last:  # a changed batch_size made the steps fewer; the newest must still be the highest
            number = self._last + 1
        self._last = number
        path = self._folder / f"checkpoint-{number:08d}.pt"
        document = {
            "format": FORMAT,
            "digest": self._digest,
            "settings": on_cpu(self._settings),
            "machine": self._machine,
            "progress": asdict(progress),
            "states": on_cpu(states),  # first, so that the file names no device
        }
        started = time.monotonic()
        remove_leftovers(path)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(document, hashing)  # type: ignore[arg-type] # it needs no more of a file than this
            except RuntimeError as error:  # torch's writer ends so after what the disk said
                raise hashing.error or OutputError(
                    f"{path}: the training state cannot be written ({error})."
                ) from error
            file.write(TRAILER + hashing.digest.hexdigest().encode())
        _sync_folder(self._folder)
        for old in self.paths()[KEPT:]:
            old.unlink(missing_ok=True)
        self.write_s = time.monotonic() - started
        logger.debug("%s: written in %.1f s", path.name, self.write_s)
        return path

    def read(self, model_state: dict[str, Any], allow_changed: bool) -> tuple[Progress, dict[str, Any]] | None:
        """Reads the newest whole checkpoint; None when there is none yet.

        Args:
            model_state: of the model that will take it.
            allow_changed: whether to continue a training that other settings began.

        Raises:
            CheckpointError: all are damaged, or it is of another model or of other settings.
        """
        path = self._agree(self._newest_whole)
        if path is None:
            return None
        self._last = int(path.stem.split("-")[1])
        saved = _load(path)
        states, progress = saved["states"], Progress(**saved["progress"])
        if other := compare_models(states["model"], model_state):
            raise CheckpointError(f"{path}: of another model: {other}. Give this run a folder of its own.")
        if saved["digest"] != self._digest:
            changed = compare_settings(saved["settings"], self._settings) or [
                f"digest {saved['digest']} then, {self._digest} now"
            ]
            shown = "; ".join(changed[:SHOWN]) + (f"; and {len(changed) - SHOWN} more" if changed[SHOWN:] else "")
            if not allow_changed:
                raise CheckpointError(
                    f"{path}: this training began with other settings: {shown}. Restore them, move the checkpoints away to start "
                    "over, or give --allow-changed to go on with the new ones."
                )
            logger.warning("%s: going on with changed settings: %s", path.name, shown)
            progress = Progress(**{**asdict(progress), "changed": [*progress.changed, *changed]})
        changed = compare_settings(saved.get("machine", self._machine), self._machine, "machine")
        if changed:
            logger.warning("%s: numbers will differ a little from an unbroken run's: %s", path.name, "; ".join(changed))
            progress = Progress(**{**asdict(progress), "changed": [*progress.changed, *changed]})
        logger.info("resuming from %s: epoch %d, step %d", path.name, progress.epoch, progress.step)
        return progress, states

    def remove(self) -> None:
        """Removes all: the training is finished, and the optimiser's state is twice the weights."""
        for path in [*self.paths(), *self._folder.glob("checkpoint-*.damaged")]:
            path.unlink(missing_ok=True)

    def newest(self) -> str | None:
        """Path of the newest one, for messages."""
        return next(map(str, self.paths()), None)

    def _newest_whole(self) -> Path | None:
        damaged: list[Path] = []
        for path in self.paths():
            if is_whole(path):
                for torn in damaged:
                    logger.warning(
                        "%s: damaged (its checksum differs), set aside; going on from %s", torn.name, path.name
                    )
                    rename_beside(torn, torn.with_suffix(".damaged").name)
                return path
            damaged.append(path)
        if damaged:
            names = " and ".join(path.name for path in damaged)
            raise CheckpointError(
                f"{self._folder}: {names}: damaged (checksums differ), and there is no older checkpoint. Restore one from a "
                "backup, or delete them; the run then starts over."
            )
        return None

    def _agree(self, find: Callable[[], Path | None]) -> Path | None:
        """What the main process finds, in every process; its error too, so that none is left waiting."""
        found: dict[str, str | None] = {}
        if self._processes.is_main:
            try:
                path = find()
                found = {"path": None if path is None else str(path)}
            except CheckpointError as error:
                found = {"error": str(error)}
        found = self._processes.broadcast(found)
        if found.get("error"):
            raise CheckpointError(found["error"])
        return None if found["path"] is None else Path(found["path"])


class _HashingFile:
    """A file for torch's writer, which writes in order, that digests what goes by and keeps what the disk said."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.error = file, hashlib.sha256(), None

    error: OSError | None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is what was written.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - TRAILER_BYTES
            digest = hashlib.sha256()
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            return left == 0 and file.read() == TRAILER + digest.hexdigest().encode()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Mend that, or move it away.") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if (
            not isinstance(saved, dict)
            or saved.get("format") != FORMAT
            or not isinstance(saved["states"]["model"], dict)
        ):
            raise ValueError("another format")
        Progress(**saved["progress"])
    except Exception:  # noqa: BLE001 - pickle raises many types, with advice that would mislead here
        raise CheckpointError(
            f"{path}: whole, but no training state of format {FORMAT}. It may be of another version; delete it to start over."
        ) from None
    return saved


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut; some network file systems have no such call."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def on_cpu(value: Any) -> Any:
    """A nested state with its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [on_cpu(inner) for inner in value]
    return value


def compare_models(saved: dict[str, torch.Tensor], model: dict[str, torch.Tensor], shown: int = 3) -> str:
    """The first parameters whose names or shapes differ, in words; empty where none does."""
    then = {name: tuple(value.shape) for name, value in saved.items()}
    now = {name: tuple(value.shape) for name, value in model.items()}
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    words = [f"{name} is {then.get(name, 'absent')} there and {now.get(name, 'absent')} here" for name in names[:shown]]
    return ", ".join(words) + (f" and {len(names) - shown} more" if names[shown:] else "")


def compare_settings(then: Any, now: Any, path: str = "") -> list[str]:
    """Every key whose value differs, as `recipe.learning_rate: 0.001 then, 0.002 now`."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            line
            for key in keys
            for line in compare_settings(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if then == now else [f"{path}: {then!r} then, {now!r} now"]
