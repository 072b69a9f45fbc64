from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tokenlabel.core.errors import CheckpointError
from tokenlabel.models import TokenModel, load_checkpoint, read_metadata, read_state_dict, save_weights
from tokenlabel.models.weights import read_checkpoint

from .test_checkpoints import randomised, same

Make = Callable[..., TokenModel]


def test_safetensors_round_trip_with_metadata(tmp_path: Path, tiny: Make) -> None:
    source = randomised(tiny())
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(source, path, {"model": "lvvit_s", "note": "é"})
    assert read_metadata(path) == {"model": "lvvit_s", "note": "é"}
    model = tiny()
    load_checkpoint(model, str(path))
    assert same(model, source.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_state_dicts_with_shared_or_strided_tensors_are_written(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    save_weights({"a": shared, "b": shared, "c": shared.t()}, tmp_path / "x.safetensors", {})
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["b"], shared)
    assert torch.equal(loaded["c"], shared.t())


class Malicious:
    """Runs code when unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pth", b""),
        ("a.pth", b"no checkpoint at all"),
        ("a.safetensors", b"12345678"),
        ("a.pth", pickle.dumps(Malicious(), protocol=2)),
    ],
    ids=["empty", "text", "safetensors", "malicious"],
)
def test_damaged_files(name: str, content: bytes, tmp_path: Path, tiny: Make) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tiny(), tmp_path / name)


def test_truncated_file(tmp_path: Path, tiny: Make) -> None:
    path = tmp_path / "a.pth"
    torch.save(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tiny(), path)


def test_malicious_file_executes_nothing_even_inside_a_torch_archive(tmp_path: Path, tiny: Make) -> None:
    torch.save({"state_dict": {"x": Malicious()}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="more than weights"):
        load_checkpoint(tiny(), tmp_path / "a.pth")


def test_missing_file_and_content_that_is_no_state_dict(tmp_path: Path, tiny: Make) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tiny(), tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_metadata(tmp_path / "none.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        load_checkpoint(tiny(), tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        load_checkpoint(tiny(), {"model": {"head.weight": 3}})


def test_a_plain_state_dict_of_both_kinds_is_read_as_it_is(tmp_path: Path) -> None:
    """Annotators read a published file as before: the plain weights, in the precision of the file."""
    half, whole = torch.ones(2, dtype=torch.float16), torch.zeros(2)
    torch.save({"state_dict_ema": {"a": whole}, "state_dict": {"a": half}}, tmp_path / "a.pth.tar")
    assert read_state_dict(tmp_path / "a.pth.tar")["a"].dtype == torch.float16
    found = read_checkpoint(tmp_path / "a.pth.tar")
    assert (found.wrapper, found.averaged, found.state["a"].sum()) == ("state_dict_ema", True, 0)


def test_others_may_read_weights_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_nobody_is_told_to_execute_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(CheckpointError) as error:
        read_state_dict(tmp_path / "page.pth")
    assert "weights_only" not in str(error.value)
    assert "no file of torch.save" in str(error.value)


def test_a_runs_folder_points_to_its_seeds(tmp_path: Path) -> None:
    save_weights({"a": torch.zeros(1)}, tmp_path / "seed3" / "model.safetensors", {})
    with pytest.raises(CheckpointError, match=r"folder for each seed; give one of them, e\.g\. .*seed3$"):
        read_checkpoint(tmp_path)
