"""What may stand in machine.json: checked where a job reads it, because it may be by hand.

Called by `command.read_machine`. Keys that are missing are no mistake here; the job that needs one says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict

from .config import Machine, describe_problem
from .config_types import Fraction
from .errors import ConfigError


class _Place(BaseModel):
    """Base of what is checked: other keys are nobody's business."""

    model_config = ConfigDict(allow_inf_nan=False)


class _Photographs(_Place):
    """Where and what the data set's photographs are."""

    format: Literal["folder", "tar", "webdataset", "huggingface"]
    train: str
    val: str | None
    on_unreadable: Literal["record", "fail"]
    max_unreadable_fraction: Fraction


class _Places(_Place):
    """What machine.json has beside the keys of the section `machine`."""

    data_root: str
    weights_root: str
    segmentation_root: str
    timm_names: list[str]
    real_labels: str | None
    test_sets: dict[str, str]
    dataset: _Photographs
    scenes: dict[str, Any]


def check_machine(document: Mapping[str, Any], where: str) -> None:
    """Checks the values of a machine.json.

    Args:
        document: of the file.
        where: its path, for the error.

    Raises:
        ConfigError: a value that is not legal.
    """
    for kind, within in ((Machine, "machine"), (_Places, "")):
        known = {key: document[key] for key in kind.model_fields if key in document}
        try:
            # strictly: jobs read the document itself, in which "24" would stay a string
            kind.model_validate_json(json.dumps(known), strict=True)
        except pydantic.ValidationError as error:
            wrong = [describe_problem(item, within) for item in error.errors() if item["type"] != "missing"]
            if wrong:
                said = wrong[0].removeprefix("configuration key ")
                raise ConfigError(f"{where}: {said}. Mend it, or let snakemake write the file.") from None
