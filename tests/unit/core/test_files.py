"""Files are whole or absent; a lease lets one job in and is taken from a dead one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tokenlabel.core.errors import OutputError
from tokenlabel.core.files import (
    Lease,
    atomic_path,
    read_json,
    remove_leftovers,
    remove_leftovers_in,
    staged_folder,
    write_json,
    write_json_if_changed,
)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"results/a\.json"):
        write_json(tmp_path / "results" / "a.json", {})


def test_an_equal_document_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_if_changed(path, {"a": 1})
    os.utime(path, (1, 1))
    write_json_if_changed(path, {"a": 1})
    assert path.stat().st_mtime == 1
    write_json_if_changed(path, {"a": 2})
    assert path.stat().st_mtime > 1


def test_a_lease_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most = 0

    def work() -> None:
        nonlocal most
        with Lease(tmp_path / "x.lease", beat_s=0.05, stale_s=30):
            inside.append(1)
            most = max(most, len(inside))
            time.sleep(0.15)
            inside.pop()

    # threads of one process look alike to a lease, so the second holder is another process
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "x.lease", 0.8))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    assert not inside  # still waiting
    thread.join(20)
    process.join(20)
    assert most == 1
    assert not (tmp_path / "x.lease").exists()


def _hold(path: Path, seconds: float) -> None:
    with Lease(path, beat_s=0.05, stale_s=30):
        (path.parent / "held").touch()
        time.sleep(seconds)


def test_a_killed_holders_lease_is_taken_over(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "x.lease", 600))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / "x.lease").exists()
    started = time.monotonic()
    with Lease(tmp_path / "x.lease"):
        assert time.monotonic() - started < 10  # its process is gone; no need to wait out the counter


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says that a process is a zombie")
def test_a_dead_process_that_nobody_reaps_holds_no_lease(tmp_path: Path) -> None:
    """As under a container whose first process is no init."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the process table
    try:
        write_json(tmp_path / "x.lease", {"host": socket.gethostname(), "pid": pid, "counter": 3})
        assert not Lease(tmp_path / "x.lease").is_held()
        write_json(tmp_path / "x.lease", {"host": socket.gethostname(), "pid": os.getppid(), "counter": 3})
        assert Lease(tmp_path / "x.lease").is_held()
    finally:
        os.waitpid(pid, 0)


def test_another_nodes_lease_is_stale_when_its_counter_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    path.write_text(json.dumps({"host": "node7", "pid": 1, "job": "12", "counter": 5}))
    started = time.monotonic()
    with Lease(path, beat_s=0.05, stale_s=0.5):
        assert time.monotonic() - started >= 0.5
        assert read_json(path)["host"] != "node7"


def test_one_whose_lease_was_taken_over_stops_and_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    other = {"host": "node7", "pid": 1, "job": "12", "counter": 0}
    with Lease(path, beat_s=0.05, stale_s=30) as lease:
        lease.check()
        write_json(path, other)
        with pytest.raises(OutputError, match=r"x\.lease: another job took over"):
            lease.check()
        time.sleep(0.2)  # several beats, none of which may take it back
        assert read_json(path) == other
    assert read_json(path) == other
    path.unlink()
    with Lease(path) as lease:
        path.unlink()
        with pytest.raises(OutputError, match="took over"):
            lease.check()


def test_what_killed_writers_left_is_removed_but_not_this_ones(tmp_path: Path) -> None:
    (tmp_path / ".a.h5.node7.12.tmp").touch()
    (tmp_path / ".a.h5x.node7.12.tmp").touch()
    (tmp_path / "a.h5.tmp").touch()
    with atomic_path(tmp_path / "a.h5") as temporary:
        temporary.touch()
        remove_leftovers(tmp_path / "a.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5", ".a.h5x.node7.12.tmp", "a.h5.tmp"}
    (tmp_path / "y.lease.stale.node7.3").touch()
    with Lease(tmp_path / "y.lease"):
        assert not list(tmp_path.glob("*.stale.*"))


def test_a_staged_folder_takes_the_place_of_the_old_one_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with staged_folder(place) as staged:
        (staged / "a").write_text("1")
    assert [path.name for path in place.iterdir()] == ["a"]
    with pytest.raises(ZeroDivisionError), staged_folder(place) as staged:
        (staged / "b").write_text("2")
        raise ZeroDivisionError
    assert [path.name for path in place.iterdir()] == ["a"]
    with staged_folder(place) as staged:
        (staged / "c").write_text("3")
    assert [path.name for path in place.iterdir()] == ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="cannot be written"), staged_folder(place / "c" / "below"):
        raise AssertionError("nothing is made below a file")


def test_what_a_killed_process_staged_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    dead.start()
    dead.join()
    left, living = (tmp_path / f".out.{socket.gethostname()}.{pid}.tmp" for pid in (dead.pid, os.getppid()))
    for folder in (left, living):
        folder.mkdir()
        (folder / "half").write_text("x")
    with staged_folder(tmp_path / "out") as staged:
        (staged / "whole").write_text("y")
    assert sorted(os.listdir(tmp_path)) == sorted([living.name, "out"])


def test_what_killed_writers_left_in_a_folder_goes_and_nothing_else(tmp_path: Path) -> None:
    mine = f".run.lease.{socket.gethostname()}.{os.getpid()}.tmp"
    for name in (".checkpoint-00000013.pt.node.123.tmp", ".tmptfHGrm", mine, "metrics.jsonl", "checkpoint-00000012.pt"):
        (tmp_path / name).touch()
    remove_leftovers_in(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine, "metrics.jsonl", "checkpoint-00000012.pt"}
