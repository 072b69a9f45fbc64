"""The sizes of the study's models: counted from the code, as published (config.yaml, published.yaml), as the paper prints them.

Called by bench/models.py, whose lines become the tables of docs/models.md, and by tests/unit/models/test_paper_counts.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import torch
import yaml

from tokenlabel.core.study import Study
from tokenlabel.engine.run_model import model_of_spec
from tokenlabel.models import TokenModel, count_multiply_adds, count_parameters, create_model

ROOT = Path(__file__).resolve().parents[1]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers that nobody counts


@dataclass(frozen=True)
class Size:
    """What a model consists of.

    Attributes:
        parameters_m: reading (see published.yaml) -> 10^6 values.
        gmacs: 10^9 multiply-adds of one image in eval mode, token head included; None where it was not counted.
        token_head_gmacs: the share of the token head.
        tokens: patch tokens of an image.
    """

    parameters_m: Mapping[str, float]
    gmacs: float | None
    token_head_gmacs: float
    tokens: int

    def fits(self, printed_m: str) -> list[str]:
        """The readings that give a printed number when they are rounded to its digits."""
        return [reading for reading, millions in self.parameters_m.items() if rounded(millions, printed_m) == printed_m]

    def published_gmacs(self, reading: str) -> float:
        """Multiply-adds of the network in its published form."""
        assert self.gmacs is not None
        return self.gmacs - (0.0 if reading == "both heads" else self.token_head_gmacs)


@dataclass(frozen=True)
class Published:
    """A model at a resolution, with what was published about it.

    Attributes:
        name: of the catalogue in config.yaml.
        architecture: as `create_model` takes it.
        image_px: side of the images.
        reading, source: how its authors count, and where their numbers are from.
        parameters_m, gmacs: 10^6 and 10^9, the authors'.
        printed: rows of the paper's tables about it.
        on_their_page: rows of its authors' page.
    """

    name: str
    architecture: str
    image_px: int
    reading: str
    source: str
    parameters_m: float
    gmacs: float
    printed: tuple[Mapping[str, Any], ...]
    on_their_page: tuple[Mapping[str, Any], ...]


def rounded(value: float, like: str) -> str:
    """A number with as many digits behind the point as a printed one."""
    return str(Decimal(str(value)).quantize(Decimal(like), ROUND_HALF_UP))


def size_of(model: TokenModel, *, multiply_adds: bool = True) -> Size:
    """Counts a model; on the meta device nothing but the count of multiply-adds takes memory or time."""
    heads = [model.get_submodule(name) for name in model.head_names]
    token_head = heads[-1]
    both, token = count_parameters(model), count_parameters(token_head)
    fixed = sum(value.numel() for name, value in model.named_buffers() if not name.endswith(STATISTICS))
    readings = {
        "both heads": both,
        "class head only": both - token,
        "no head": both - sum(count_parameters(head) for head in heads),
    }
    if fixed:
        readings["class head + fixed"] = both - token + fixed
    tokens = model.grid[0] * model.grid[1]
    return Size(
        {reading: count / 1e6 for reading, count in readings.items()},
        count_multiply_adds(model, model.image_px) / 1e9 if multiply_adds else None,
        tokens * token_head.in_features * token_head.out_features / 1e9,
        tokens,
    )


def blank(architecture: str, image_px: int) -> TokenModel:
    """A model on the meta device, which has shapes and no values."""
    with torch.device("meta"):
        return create_model(architecture, image_px=image_px)


def statements() -> dict[str, Any]:
    """The content of published.yaml."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "bench" / "published.yaml").read_text(encoding="utf-8"))
    return content


@functools.cache
def study() -> Study:
    """The paper's study, as config.yaml plans it."""
    return Study.plan(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))


def published_models() -> list[Published]:
    """Every student of the catalogue at its own resolution, and at every other one that the paper has a row for."""
    said, catalogue = statements(), study().config.models
    for row in (*said["models"], *said["authors"]):
        row.setdefault("image_px", catalogue[row["model"]].image_px)
    models = []
    for name, entry in catalogue.items():
        counting = said["counting"][name.split("_", 1)[0]]
        rows, page = ([row for row in said[kind] if row["model"] == name] for kind in ("models", "authors"))
        for image_px in dict.fromkeys([entry.image_px, *(row["image_px"] for row in rows)]):
            printed = tuple(row for row in rows if row["image_px"] == image_px)
            own = entry.model_dump() if image_px == entry.image_px else printed[0]
            models.append(
                Published(
                    name, entry.architecture, image_px, counting["reading"], counting["source"], own["parameters_m"],
                    own["gmacs"], printed, tuple(row for row in page if row["image_px"] == image_px),
                )
            )  # fmt: skip
    return models


def ablations() -> list[tuple[Mapping[str, Any], TokenModel]]:
    """Each row of Tables 8, 9 and 10 as published.yaml has it, and the model that the study trains for it, on the meta device."""
    tables = study().tables
    found = []
    for row in statements()["ablations"]:
        (planned,) = [line for line in tables[row["experiment"]].rows if line.name == row["name"]]
        with torch.device("meta"):
            found.append((row, model_of_spec(planned.run.spec)))
    return found


def wording(fits: Sequence[str], why: str | None) -> str:
    """How a printed number and the readings that give it are told on the page."""
    told = ", ".join(fits) if fits else "none"
    return f"{told}: {why}" if why else told
