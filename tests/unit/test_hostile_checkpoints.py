"""Checkpoints that were made to harm: whatever reads weights executes nothing in them and says in a line what is wrong."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenlabel.cli import main
from tokenlabel.core.errors import CheckpointError, TokenLabelError
from tokenlabel.engine.checkpoints import TRAILER, Checkpoints, Progress
from tokenlabel.engine.processes import ALONE
from tokenlabel.models import create_model, load_checkpoint, load_model, save_weights
from tokenlabel.models.model_config import CONFIG_FILE, describe_model, write_model_config
from tokenlabel.models.pretrained import load_pretrained, read_folds
from tokenlabel.models.weights import read_checkpoint, read_metadata, read_state_dict

SETTINGS = {"depth": 1, "width": 32, "heads": 2}


class Bomb:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.path),)


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def good_state() -> dict[str, torch.Tensor]:
    return create_model("lvvit_t", 3, 64, **SETTINGS).state_dict()


def inflating() -> bytes:
    """A state dict whose storage is told to be 4 GB of zeros, compressed."""
    archive = zipfile.ZipFile(io.BytesIO(saved({"x": torch.zeros(8)})))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            content = archive.read(name)
            bomb.writestr(name, bytes(2**26) if "/data/" in name else content)
    return made.getvalue()


def pickled_bombs(path: Path) -> dict[str, bytes]:
    bomb = Bomb(path)
    return {
        "plain pickle": pickle.dumps(bomb),
        "zip": saved(bomb),
        "legacy": saved(bomb, _use_new_zipfile_serialization=False),
        "beside weights": saved({"state_dict": good_state(), "arch": bomb}),
        "as a weight": saved({**good_state(), "norm.bias": bomb}),
        "as a key": saved({"model": {bomb: torch.zeros(1)}}),
    }


def misleading_files() -> dict[str, bytes]:
    """Name, with the suffix that they are read by -> content."""
    half = torch.zeros(1, dtype=torch.float16)

    def safetensors(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + body

    def entry(**values: Any) -> bytes:
        return json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **values}}).encode()

    return {
        "strides of 0.pth": saved({"x": half.expand(2**40)}),
        "numbers for names.pth": saved({3: torch.zeros(1)}),
        "sparse.pth": saved({"x": torch.eye(3).to_sparse()}),
        "of no device.pth": saved({"x": torch.empty(2**40, device="meta")}),
        "nested.pth": saved({"state_dict": [[[[]]]]}),
        "not weights.pth": saved({"state_dict": {"x": "text"}}),
        "inflating.pth": inflating(),
        "zip of something.pth": zip_of_text(),
        "text.pth": b"photographs " * 999,
        "tar.pth.tar": b"x" * 257 + b"ustar\x0000" + bytes(5000),
        "header of exabytes.safetensors": safetensors(b"{}", 2**62),
        "header cut off.safetensors": safetensors(b"{}", 500),
        "header nested.safetensors": safetensors(b"[" * 10**6),
        "header no object.safetensors": safetensors(b"[1]"),
        "header not UTF-8.safetensors": safetensors(b"\xff\xfe{}"),
        "shape of exabytes.safetensors": safetensors(entry(shape=[2**40, 2**20]), body=bytes(8)),
        "shape negative.safetensors": safetensors(entry(shape=[-2]), body=bytes(8)),
        "huge number.safetensors": safetensors(entry(shape=[int("9" * 4000)]), body=bytes(8)),
        "offsets outside.safetensors": safetensors(entry(data_offsets=[0, 2**50]), body=bytes(8)),
        "offsets backwards.safetensors": safetensors(entry(data_offsets=[8, 0]), body=bytes(8)),
        "unknown type.safetensors": safetensors(entry(dtype="PYOBJ"), body=bytes(8)),
        "empty.safetensors": b"",
    }


def zip_of_text() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("../../escaped.txt", "x")
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch escaped.txt'\ntR.")
    return made.getvalue()


@pytest.fixture(scope="module")
def photograph_folder(photographs: Path) -> Path:
    return photographs / "val"


def readers(path: Path, out: Path, photographs: Path) -> dict[str, Callable[[], object]]:
    """Everything that reads weights from a file that a user names."""
    model = create_model("lvvit_t", 3, 64, **SETTINGS)
    source = {
        "architecture": "tf_efficientnet_lite0", "weights": f"file:{path}", "weights_sha256": None, "weights_naming": "timm",
    }  # fmt: skip
    one = str(next(photographs.rglob("*.*")))
    return {
        "load_checkpoint": lambda: load_checkpoint(model, path),
        "load_model": lambda: load_model(path),
        "load_model as timm's": lambda: load_model(path, architecture="timm/resnet18"),
        "read_checkpoint": lambda: read_checkpoint(path),
        "read_state_dict": lambda: read_state_dict(path),
        "an annotator's weights": lambda: load_pretrained(source, Path()),
        "published weights": lambda: load_pretrained(source, Path(), averaged=True),
        "predict": lambda: run("predict", str(path), one),
        "predict as timm's": lambda: run("predict", str(path), one, "--architecture", "timm/resnet18"),
        "evaluate": lambda: run(
            "evaluate", str(path), str(photographs), "--workers", "0", "--out", str(out / "e.json")
        ),
        "export": lambda: run("export", str(path), str(out / "exported")),
        "visualise": lambda: run("visualise", str(path), one, "--out", str(out / "v.png")),
    }


def run(*words: str) -> None:
    """A command; a refusal of one line is an error here."""
    if code := main(words):
        raise CheckpointError(f"exit code {code}")


READERS = tuple(readers(Path("x.pth"), Path(), Path(__file__).parent.parent))


@pytest.mark.parametrize("reader", READERS)
def test_no_code_in_a_checkpoint_is_run(
    reader: str, tmp_path: Path, photograph_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exploded = tmp_path / "exploded"
    for name, content in pickled_bombs(exploded).items():
        for suffix in (".pth", ".pth.tar", ".pt", ".bin", ".safetensors"):
            path = tmp_path / f"bomb{suffix}"
            path.write_bytes(content)
            with pytest.raises(TokenLabelError):
                readers(path, tmp_path, photograph_folder)[reader]()
            said = capsys.readouterr().err
            assert "weights_only=False" not in said, name
            assert "Traceback" not in said, name
            assert not exploded.exists(), (name, suffix)
            path.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_the_bombs_are_live(tmp_path: Path) -> None:
    for name, content in pickled_bombs(tmp_path / "exploded").items():
        if name == "plain pickle":
            pickle.loads(content)
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        (tmp_path / "exploded").rmdir()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", misleading_files())
def test_a_file_that_misleads_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(misleading_files()[name])
    for read in (read_checkpoint, read_state_dict, load_model):
        with pytest.raises(CheckpointError, match=path.name.split(".")[0]) as refused:
            read(path)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 1000
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_nothing_in_a_training_state_is_run(tmp_path: Path) -> None:
    """The checksum of a checkpoint is no signature: whoever writes the file writes it as well."""
    import hashlib

    for name, content in pickled_bombs(tmp_path / "exploded").items():
        path = tmp_path / "checkpoint-00000001.pt"
        path.write_bytes(content + TRAILER + hashlib.sha256(content).hexdigest().encode())
        with pytest.raises(CheckpointError, match="no training state"):
            Checkpoints(tmp_path, "12345678-seed0", {}, ALONE).read({}, allow_changed=True)
        assert not (tmp_path / "exploded").exists(), name


def test_a_training_state_without_its_parts_is_refused(tmp_path: Path) -> None:
    import hashlib

    kept = Checkpoints(tmp_path, "12345678-seed0", {}, ALONE)
    kept.write(1, Progress(), {"model": {}})
    (path,) = kept.paths()
    for document in (
        {"format": 1},
        {"format": 1, "states": [], "progress": {}},
        {"format": 1, "states": {}, "progress": {"x": 1}},
    ):
        content = saved(document)
        path.write_bytes(content + TRAILER + hashlib.sha256(content).hexdigest().encode())
        with pytest.raises(CheckpointError, match="no training state"):
            Checkpoints(tmp_path, "12345678-seed0", {}, ALONE).read({}, allow_changed=True)


@pytest.mark.parametrize(
    "metadata",
    [
        {"spec": "["}, {"spec": "[" * 10**5}, {"spec": "[1]"}, {"spec": '{"recipe": {}}'}, {"spec": "9" * 9999},
        {"spec": '{"recipe": {}, "model": {"architecture": "os.system"}, "image_px": 64, "dataset": {"num_classes": 3}}'},
        {"spec": '{"recipe": {}, "model": 3}'},
    ],
)  # fmt: skip
def test_metadata_that_misleads_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(good_state(), path, {"classes": '["a", "b", "c"]', **metadata})
    assert read_metadata(path)["spec"] == metadata["spec"]
    with pytest.raises(TokenLabelError) as refused:
        load_model(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5, "9" * 9999, '{"architecture": "lvvit_t"}', "null", "\udcff", "{}",
        '{"architecture": "../../etc/passwd", "model_args": {}, "pretrained_cfg": {}}',
    ],
)  # fmt: skip
def test_a_description_that_misleads_is_refused(text: str, tmp_path: Path) -> None:
    model = create_model("lvvit_t", 3, 64, **SETTINGS)
    save_weights(model, tmp_path / "model.safetensors", {"spec_digest": "00000000"})
    write_model_config(tmp_path, describe_model(model, "lvvit_t", SETTINGS, ["a", "b", "c"], crop=0.9))
    load_model(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=CONFIG_FILE) as refused:
        load_model(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_heads_of_folds_are_read_without_running_anything(tmp_path: Path) -> None:
    save_weights({"x": torch.zeros(1)}, tmp_path / "annotator.safetensors", {"fold_heads_sha256": "["})
    (tmp_path / "folds.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError):
        read_folds(tmp_path / "annotator.safetensors")
    assert not (tmp_path / "exploded").exists()
