"""What a job is pointed to: documents by hand with a key too few or a value that is not legal are one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import machine_settings
from tokenlabel.core.command import read_document, read_machine
from tokenlabel.core.errors import ConfigError, DataError
from tokenlabel.core.identity import digest_of

SPEC = {"stage": "train", "recipe": {"epochs": 3, "crop_scale": [0.3, 1.0]}}


def written(folder: Path, document: Any) -> Path:
    path = folder / "document.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_document_is_the_dictionary_that_was_written(tmp_path: Path) -> None:
    spec = read_document(written(tmp_path, SPEC), "the run's spec")
    assert spec == SPEC
    assert digest_of(spec) == digest_of(SPEC)
    copy = pickle.loads(pickle.dumps(spec))
    assert (copy, type(copy), type(copy["recipe"])) == (SPEC, dict, dict)
    assert spec.get("labels") is None


@pytest.mark.parametrize(
    ("look", "key"),
    [
        (lambda spec: spec["image_px"], "image_px"),
        (lambda spec: spec["recipe"]["batch_size"], "recipe.batch_size"),
        (lambda spec: (spec | {"seed": 0})["recipe"]["batch_size"], "recipe.batch_size"),
    ],
    ids=["outer", "inner", "joined"],
)
def test_a_missing_key_is_one_line_with_its_path(tmp_path: Path, look: Any, key: str) -> None:
    path = written(tmp_path, SPEC)
    spec = read_document(path, "the run's spec")
    with pytest.raises(ConfigError) as caught:
        look(spec)
    assert str(caught.value).startswith(f"{path}: the run's spec: no key {key}. Add it")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("micro_batch", 0, "machine.micro_batch: 0 is not legal"),
        ("micro_batch", "24", "machine.micro_batch: '24' is not legal: input should be a valid integer"),
        ("compile", "yes", "machine.compile: 'yes' is not legal"),
        ("data_root", None, "data_root: None is not legal: input should be a valid string"),
        ("dataset", {"format": "folder", "train": None}, "dataset.train: None is not legal"),
        ("dataset", [], "dataset: [] is not legal"),
        ("threads", "many", "machine.threads: 'many' is not legal"),
        ("device", "gpu", "machine.device: 'gpu' is not legal. Did you mean 'cpu'?"),
        ("checkpoint_seconds", -1.0, "machine.checkpoint_seconds: -1.0 is not legal"),
    ],
)
def test_a_machine_value_by_hand_is_checked(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = written(tmp_path, machine_settings(tmp_path) | {key: value})
    with pytest.raises(ConfigError) as caught:
        read_machine(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_a_machine_by_hand_may_leave_out_what_a_job_does_not_ask_for(tmp_path: Path) -> None:
    machine = read_machine(written(tmp_path, {"device": "cpu", "threads": 1, "leg_epochs": None, "note": "by hand"}))
    assert machine["threads"] == 1
    with pytest.raises(ConfigError, match=r"the machine settings: no key micro_batch\. Add it"):
        machine["micro_batch"]


def test_a_section_that_is_no_object_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": {"settings": "x"}})
    with pytest.raises(ConfigError, match=rf"^{path}: the spec: model\.settings is str, expected an object\. Mend it"):
        read_document(path, "the spec", sections=("dataset", "model", "model.settings"))


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a JSON object, found list"):
        read_machine(written(tmp_path, [1]))
