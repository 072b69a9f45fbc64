"""Checkpoints on a disk that damages them, fills up, or is taken away; the two last are kept, whole or not at all."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenlabel.core.errors import CheckpointError
from tokenlabel.engine.checkpoints import Checkpoints, Progress, compare_models, compare_settings, is_whole
from tokenlabel.engine.processes import ALONE


def states(value: float) -> dict[str, Any]:
    return {"model": {"weight": torch.full((50, 50), value)}, "optimizer": {"state": {}, "lr": 0.1}, "averaged": None}


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder, "12345678-seed0", {"seed": 0}, ALONE)


@pytest.fixture
def written(tmp_path: Path) -> Checkpoints:
    """Three checkpoints were written."""
    kept = checkpoints(tmp_path)
    for number in (8, 9, 10):
        meters = {"window": {"loss": 0.1 * number}, "epoch": {}}
        kept.write(number, Progress(epoch=1, step=number, meters=meters, images=7), states(number))
    return kept


def read(folder: Path) -> tuple[int, float]:
    found = checkpoints(folder).read(states(0)["model"], allow_changed=False)
    assert found is not None
    return found[0].step, float(found[1]["model"]["weight"][0, 0])


def test_the_last_two_are_kept_and_the_newest_is_read(written: Checkpoints, tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000009.pt", "checkpoint-00000010.pt"]
    found = checkpoints(tmp_path).read(states(0)["model"], allow_changed=False)
    assert found is not None
    assert found[0] == Progress(1, 10, {"window": {"loss": 1.0}, "epoch": {}}, 7)
    assert torch.equal(found[1]["model"]["weight"], torch.full((50, 50), 10.0))
    assert torch.load(tmp_path / "checkpoint-00000010.pt", weights_only=True)["digest"] == "12345678-seed0"
    written.remove()
    assert not list(tmp_path.iterdir())
    assert checkpoints(tmp_path).read(states(0)["model"], allow_changed=False) is None


def test_any_bit_and_any_length_is_noticed(written: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000010.pt"
    pristine, rng = path.read_bytes(), random.Random(0)
    assert is_whole(path)
    for _ in range(300):
        content = bytearray(pristine)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        assert not is_whole(path)
    for length in [0, 1, 70, 71, 72, len(pristine) - 1, *(rng.randrange(len(pristine)) for _ in range(50))]:
        path.write_bytes(pristine[:length])
        assert not is_whole(path)
    path.write_bytes(pristine + b"\0")
    assert not is_whole(path)


def test_a_damaged_newest_one_is_set_aside_and_said(
    written: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = tmp_path / "checkpoint-00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert read(tmp_path) == (9, 9.0)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line == (
        "checkpoint-00000010.pt: damaged (its checksum differs), set aside; going on from checkpoint-00000009.pt"
    )
    kept = checkpoints(tmp_path)
    kept.write(10, Progress(1, 10), states(10))
    assert [path.name for path in kept.paths()] == ["checkpoint-00000010.pt", "checkpoint-00000009.pt"]
    kept.remove()
    assert not list(tmp_path.iterdir())


def test_two_damaged_ones_are_refused_with_a_remedy(written: Checkpoints, tmp_path: Path) -> None:
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"rubbish")
    with pytest.raises(
        CheckpointError, match=r"00000010\.pt and checkpoint-00000009\.pt: damaged .*delete them; the run"
    ):
        read(tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_a_whole_file_that_is_no_training_state_is_refused(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    path = kept.write(1, Progress(), states(1))
    import hashlib

    torch.save({"a": torch.zeros(1)}, path)
    path.write_bytes(path.read_bytes() + b"\nsha256:" + hashlib.sha256(path.read_bytes()).hexdigest().encode())
    with pytest.raises(CheckpointError, match="no training state of format 1"):
        read(tmp_path)


def test_a_full_disk_is_one_line_and_the_last_one_stays(tmp_path: Path) -> None:
    """A limit on the size of files gives the same error as a full disk, in a process of its own."""
    script = f"""
import errno, resource, signal, sys
from pathlib import Path
from tests.unit.engine.test_checkpoints import Progress, checkpoints, states
from tokenlabel.core.errors import exit_on_user_error
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
kept = checkpoints(Path({str(tmp_path)!r}))
kept.write(1, Progress(), states(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.exit(exit_on_user_error(lambda: kept.write(2, Progress(), states(2))))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "checkpoint-00000002.pt: cannot be written (File too large)" in line
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]
    assert read(tmp_path) == (0, 1.0)


def test_differences_are_named_key_by_key() -> None:
    then = {"recipe": {"epochs": 3, "mix": "none"}, "seed": 0, "labels": None}
    now = {"recipe": {"epochs": 4, "mix": "none", "new": 1}, "seed": 0, "labels": {"k": 5}}
    assert compare_settings(then, now) == [
        "recipe.epochs: 3 then, 4 now", "recipe.new: None then, 1 now", "labels: None then, {'k': 5} now",
    ]  # fmt: skip
    assert compare_settings(then, then) == []


def test_models_are_compared_by_names_and_shapes() -> None:
    one, other = {"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.ones(2), "b": torch.zeros(4)}
    assert compare_models(one, one | {"a": torch.ones(2)}) == ""
    assert compare_models(one, other) == "b is (3,) there and (4,) here"
    assert compare_models(one, {"a": one["a"]}) == "b is (3,) there and absent here"
