"""What docs/shared-folders.md promises of the code: no locks, no clocks of two machines, renames within a folder only."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from tokenlabel.core.files import Lease, rename_beside, staged_folder, write_text
from tokenlabel.labels import LabelStore

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = sorted((REPOSITORY / "src").rglob("*.py"))
GOLDEN = REPOSITORY / "tests" / "golden" / "format-1" / "compact"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Name of what is called, without what it belongs to, and the call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr, node


def test_files_are_renamed_in_core_files_only() -> None:
    for path in SOURCES:
        for name, call in calls(path):
            renames = name in ("rename", "renames", "move") or (
                name == "replace" and len(call.args) == 1 and not call.keywords
            )
            renames = renames and ast.unparse(call.func) not in ("dataclasses.replace",)
            assert not renames or path.name == "files.py", f"{path}:{call.lineno}: use tokenlabel.core.files"


def test_every_rename_stays_in_its_folder(tmp_path: Path) -> None:
    renames: list[tuple[str, str]] = []
    sys.addaudithook(lambda event, args: renames.append(args[:2]) if event == "os.rename" else None)
    write_text(tmp_path / "a" / "text", "1")
    rename_beside(tmp_path / "a" / "text", "other")
    for _ in range(2):
        with staged_folder(tmp_path / "b") as staged:
            (staged / "file").touch()
    with Lease(tmp_path / "c" / "x.lease", beat_s=0.01) as lease:
        lease.check()
    (tmp_path / "c" / "x.lease").write_text('{"host": "gone", "pid": 1, "job": "", "counter": 3}')
    with Lease(tmp_path / "c" / "x.lease", beat_s=0.01, stale_s=0.05):
        pass
    ours = [(Path(source), Path(target)) for source, target in renames if str(source).startswith(str(tmp_path))]
    assert len(ours) >= 6
    assert all(source.parent == target.parent for source, target in ours)


def test_no_lock_and_no_database_of_a_file_system_is_used() -> None:
    for path in [*SOURCES, *(REPOSITORY / "rules").rglob("*.smk")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(import (fcntl|sqlite3|dbm|shelve)|lockf|flock)\b", text), path


def test_times_of_files_are_compared_in_one_place() -> None:
    """There against each other, and never with a clock: of the shards that `tokenlabel refresh` made stale."""
    found = [
        path.name
        for path in [*SOURCES, *(REPOSITORY / "rules").rglob("*.smk")]
        if re.search(r"st_mtime|getmtime", path.read_text())
    ]
    assert found == ["common.smk"]


def test_hdf5_files_are_opened_without_a_lock() -> None:
    opened = [
        (path, call)
        for path in SOURCES
        for name, call in calls(path)
        if name == "File" and "h5py" in ast.unparse(call.func)
    ]
    assert opened
    for path, call in opened:
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert settings.get("locking") == "False" or settings.get("driver") == "'core'", path


def test_shards_are_read_while_their_lock_cannot_be_had(tmp_path: Path) -> None:
    """As on file systems that have no locks; h5py's default refuses there."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "labels"))
    hold = (
        "import fcntl, sys; files = [open(name) for name in sys.argv[1:]]\n"
        "for file in files: fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(); sys.stdin.read()"
    )
    shards = sorted(map(str, folder.glob("*.h5")))
    with subprocess.Popen(
        [sys.executable, "-c", hold, *shards], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdin
        holder.stdout.readline()
        with pytest.raises(BlockingIOError):
            h5py.File(shards[0], "r")
        store = LabelStore(folder, split="train")
        assert len(store.get_many(store.ids).status) == 7
        store.verify()
        holder.stdin.close()


def test_a_lease_is_a_plain_file_that_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with Lease(tmp_path / "new" / "x.lease", beat_s=60):
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new", tmp_path / "new" / "x.lease")]
    finally:
        os.umask(before)
    assert modes == [0o775, 0o664]
