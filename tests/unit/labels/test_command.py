"""`tokenlabel labels inspect|verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tokenlabel.cli import main
from tokenlabel.labels.shards import LabelRows, marker_path

Folder = Callable[..., tuple[Path, LabelRows]]


def test_inspect_a_folder(label_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = label_folder()
    assert main(["labels", "inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folder)
    assert "  annotator       lite0" in lines
    assert "  num_classes     10" in lines
    header = next(line for line in lines if line.startswith("  file"))
    assert header.split() == ["file", "images", "ok", "unreadable", "pending", "size_bytes", "manifest_digest"]
    table = [line.split() for line in lines if ".h5" in line]
    assert [line[0] for line in table] == [f"train-0000{shard}-of-00003.h5" for shard in range(3)]
    assert sum(int(line[1]) for line in table) == len(rows)
    assert sum(int(line[3]) for line in table) == 1
    assert [line[6] for line in table] == ["m0", "m1", "m2"]


def test_inspect_a_file(label_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    shard = label_folder()[0] / "train-00001-of-00003.h5"
    assert main(["labels", "inspect", str(shard)]) == 0
    out = capsys.readouterr().out
    assert "manifest_digest  m1" in out
    assert out.count(".h5") == 1


def test_inspect_what_is_no_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.h5").write_text("x")
    assert main(["labels", "inspect", str(tmp_path / "x.h5")]) == 2
    assert f"error: shard {tmp_path / 'x.h5'}: damaged" in capsys.readouterr().err
    assert main(["labels", "inspect", str(tmp_path)]) == 2
    assert "no shards there" in capsys.readouterr().err


def test_verify_goes_on_after_a_bad_shard(label_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = label_folder()
    assert main(["labels", "verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert [line[:2] for line in out.splitlines()] == ["ok"] * 3
    assert out.count("sha256 as in its marker") == 3
    shard = folder / "train-00001-of-00003.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["labels", "verify", str(folder), str(folder / "none")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "BAD", "ok", "BAD"]
    assert f"shard {shard}: sha256" in lines[1]
    assert f"shard {folder / 'none'}: missing" in lines[3]


def test_verify_without_marker_and_with_a_gap(label_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = label_folder()
    first = folder / "train-00000-of-00003.h5"
    marker_path(first).unlink()
    assert main(["labels", "verify", str(first)]) == 0
    assert "no marker to compare with" in capsys.readouterr().out
    (folder / "train-00002-of-00003.h5").unlink()
    assert main(["labels", "verify", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "BAD"]
    assert "train-00002-of-00003.h5: missing" in lines[2]


def test_verify_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", "verify", str(tmp_path)]) == 1
    assert "no shards there" in capsys.readouterr().out
