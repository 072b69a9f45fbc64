"""Files that are either whole or absent, and the lease that keeps two jobs from doing one output's work.

Everything that other jobs read is written under a name of its own in the same folder, synced and renamed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import OutputError

LEASE_BEAT_S = 2.0
LEASE_STALE_S = 30.0  # 15 missed beats by the reader's own clock; clocks of two nodes are never compared


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it is synced and renamed to `path`, on failure removed.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # OSError of the writing itself (full disk, no permission); the reader of the block raises its own errors
        raise OutputError(
            f"{path}: cannot be written ({_reason(error)}). Free space or permission is needed there."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`; on success it takes its place (what was there is removed), else it is removed.

    Raises:
        OutputError: it cannot be made or put in place.
    """
    own = f"{folder.name}.{socket.gethostname()}.{os.getpid()}"
    staged, old = folder.with_name(f".{own}.tmp"), folder.with_name(f".{own}.old")
    try:
        staged.mkdir(parents=True)
        _remove_staged_by_the_dead(folder)
        yield staged
        if folder.exists():
            folder.rename(old)
        staged.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise OutputError(
            f"{folder}: cannot be written ({_reason(error)}). Free space or permission is needed there."
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _remove_staged_by_the_dead(folder: Path) -> None:
    """Removes what killed processes of this host staged for `folder`."""
    start = f".{folder.name}.{socket.gethostname()}."
    for left in folder.parent.glob(f"{glob.escape(start)}*.tmp"):
        pid = left.name.removeprefix(start).removesuffix(".tmp")
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a container whose first process reaps nobody keeps the dead as zombies
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _reason(error: OSError) -> str:
    """The system's words; HDF5 puts four lines of its own into strerror."""
    return os.strerror(error.errno) if error.errno else str(error)


def rename_beside(path: Path, name: str) -> None:
    """Gives a file another name in its own folder, in place of what had that name: atomic on every file system.

    A rename into another folder is not: it may be another file system, where it copies.
    """
    path.replace(path.with_name(name))


def remove_leftovers(path: Path) -> None:
    """Removes what killed writers of `path` left beside it; called by the job that holds the output's lease."""
    _remove_others(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


def remove_leftovers_in(folder: Path) -> None:
    """Removes what killed writers left in a folder of whose lease this job is the holder; safetensors' own files too."""
    _remove_others([*folder.glob(".*.tmp"), *folder.glob(".tmp??????")])


def _remove_others(temporaries: Iterable[Path]) -> None:
    """Removes temporary files but those that this process is writing."""
    own = f".{socket.gethostname()}.{os.getpid()}.tmp"
    for left in temporaries:
        if not left.name.endswith(own):
            with contextlib.suppress(OSError):
                left.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON document atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_json_if_changed(path: Path, value: Any) -> None:
    """Like `write_json`, but leaves an equal file alone, so that its modification time means something."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:
            return
    write_text(path, text)


def read_json(path: Path) -> Any:
    """Reads a JSON document; ValueError where it is none, or is nested without end."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """A JSON document that others wrote; ValueError where it is none, or is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lease_in(path: Path) -> dict[str, Any]:
    """What a lease says; ValueError where it is none, as while its owner is creating it."""
    held = read_json(path)
    if not isinstance(held, dict):
        raise ValueError(f"a lease is a JSON object, found {type(held).__name__}")
    return held


class Lease:
    """An exclusive right to make one output, held by a file beside it while a job runs.

    The owner rewrites a counter every two seconds. Another job that wants the same output waits; once the counter has
    stood still for 30 s by the waiting job's own clock (or the owner was a process of this host that is gone), the
    lease is stale and is taken over. An owner that only stood still (a suspended job, a hanging file system) finds out
    by `check` and stops.

        with Lease(folder / "train-00003.lease") as lease:
            ...
            lease.check()  # before every write
    """

    def __init__(self, path: Path, *, beat_s: float = LEASE_BEAT_S, stale_s: float = LEASE_STALE_S) -> None:
        self.path = path
        self._beat_s, self._stale_s = beat_s, stale_s
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
        }
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _write(self, counter: int) -> None:
        write_json(self.path, {**self._owner, "counter": counter})

    def _try_create(self) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a file in the folder's place too
            raise self._unwritable(error) from error
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the umask
        except FileExistsError:
            return False
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({**self._owner, "counter": 0}, file)
        except OSError as error:  # a full disk gives the name but not the bytes
            self.path.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        return True

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path}: cannot be written ({_reason(error)}). Free space or permission is needed there."
        )

    def _is_ours(self) -> bool:
        try:
            held = _lease_in(self.path)
        except (FileNotFoundError, ValueError):  # ValueError: another job has just created it
            return False
        except OSError:
            return True  # cannot tell; a file system that hangs is no other job
        return {name: held.get(name) for name in self._owner} == self._owner

    def check(self) -> None:
        """Makes sure that the lease is still this job's; to be called before what must not be written twice.

        Raises:
            OutputError: another job took over while this one stood still.
        """
        if not self._is_ours():
            raise OutputError(
                f"{self.path}: another job took over, because this one stood still for more than {self._stale_s:g} s. "
                "It does the work; nothing is lost."
            )

    def is_held(self) -> bool:
        """Whether another job's lease lies there; not one whose owner was a process of this host that is gone."""
        try:
            return not self._owner_is_dead(_lease_in(self.path))
        except FileNotFoundError:
            return False
        except ValueError:  # another job has just created it
            return True

    def _owner_is_dead(self, held: dict[str, Any]) -> bool:
        if held.get("host") != self._owner["host"] or not isinstance(held.get("pid"), int):
            return False
        if held["pid"] == self._owner["pid"]:
            return True  # this process's own earlier lease, left by an exception during acquisition
        return not _is_alive(held["pid"])

    def _wait_until_stale_or_gone(self) -> None:
        last: dict[str, Any] | None = None
        still_since = time.monotonic()
        while True:
            try:
                held = _lease_in(self.path)
            except FileNotFoundError:
                return
            except ValueError:
                held = {}  # caught between creation and first write
            if self._owner_is_dead(held):
                break
            if held != last:
                last, still_since = held, time.monotonic()
            elif time.monotonic() - still_since > self._stale_s:
                break
            time.sleep(min(self._beat_s, 0.5))
        # rename is atomic: of several waiting jobs exactly one removes this very lease
        grave = self.path.with_name(f"{self.path.name}.stale.{self._owner['host']}.{self._owner['pid']}")
        try:
            self.path.rename(grave)
            grave.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error

    def _beat(self) -> None:
        counter = 0
        while not self._stop.wait(self._beat_s):
            counter += 1
            if not self._is_ours():
                return  # taken over; writing would take it back
            with contextlib.suppress(OutputError):  # a full disk must not kill the job through its heartbeat
                self._write(counter)

    def __enter__(self) -> Lease:
        while not self._try_create():
            self._wait_until_stale_or_gone()
        remove_leftovers(self.path)
        for grave in self.path.parent.glob(f"{glob.escape(self.path.name)}.stale.*"):
            with contextlib.suppress(OSError):
                grave.unlink()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"lease {self.path.name}")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Gives the right back; for a thread that ends the process while the block is still running."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._is_ours():
            with contextlib.suppress(OSError):
                self.path.unlink()
