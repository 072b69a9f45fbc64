"""Parameters and multiply-adds of every model of the study against the catalogue, the authors' code and the paper's tables."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch

from bench.counts import Published, Size, ablations, blank, published_models, size_of, statements, study
from bench.record import read_results
from tokenlabel.models import TokenModel, TokenOutput, count_parameters, create_model, model_names

LARGE_GMACS = 20.0  # counting runs the model once, on the CPU
GMACS_AGREE = 0.015  # the paper's multiply-adds are counted by another tool, and are 1.4 % above at most
MODELS = published_models()
PRINTED = [(model, row) for model in MODELS for row in (*model.printed, *model.on_their_page)]
ROWS = statements()["ablations"]
NAMES = [f"{model.name}_{model.image_px}" for model in MODELS]


@functools.cache
def parameters_of(architecture: str, image_px: int) -> Size:
    return size_of(blank(architecture, image_px), multiply_adds=False)


@functools.cache
def size(architecture: str, image_px: int) -> Size:
    return size_of(blank(architecture, image_px))


@functools.cache
def ablated() -> list[tuple[Any, TokenModel]]:
    return ablations()


def large_later(value: Any, model: Published, name: str) -> Any:
    """A test's parameter; models whose count takes seconds and gigabytes belong to the campaign."""
    return pytest.param(value, id=name, marks=[pytest.mark.campaign] if model.gmacs > LARGE_GMACS else [])


def label(row: dict[str, Any]) -> str:
    return f"{row.get('table', 'authors')}: {row['row']}"


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_parameters_are_those_of_the_published_network(model: Published) -> None:
    found = parameters_of(model.architecture, model.image_px).parameters_m[model.reading]
    assert found == pytest.approx(model.parameters_m, abs=6e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("model", list(map(large_later, MODELS, MODELS, NAMES)))
def test_multiply_adds_are_those_of_the_published_network(model: Published) -> None:
    found = size(model.architecture, model.image_px).published_gmacs(model.reading)
    assert found == pytest.approx(model.gmacs, rel=5e-3)


@pytest.mark.parametrize(
    "name", [name for name, entry in study().config.models.items() if "timm/" in entry.architecture]
)
def test_catalogue_says_of_timm_models_what_timm_says(name: str) -> None:
    entry = study().config.models[name]
    with torch.device("meta"):
        theirs = timm.create_model(entry.architecture.removeprefix("timm/"))
    assert entry.parameters_m is not None
    assert count_parameters(theirs) / 1e6 == pytest.approx(entry.parameters_m, abs=6e-4)
    assert entry.eval_crop == theirs.pretrained_cfg["crop_pct"]
    assert entry.image_px == theirs.pretrained_cfg["input_size"][-1]


@pytest.mark.parametrize(("model", "row"), PRINTED, ids=[label(row) for _, row in PRINTED])
def test_printed_parameters(model: Published, row: dict[str, Any]) -> None:
    """Which ways of counting give the printed number, exactly: neither fewer nor more than published.yaml says."""
    assert parameters_of(model.architecture, model.image_px).fits(row["printed_m"]) == row["fits"]
    assert row["fits"] or "why" in row


@pytest.mark.parametrize(
    "pair", [large_later(pair, pair[0], label(pair[1])) for pair in PRINTED if "printed_gmacs" in pair[1]]
)
def test_printed_multiply_adds(pair: tuple[Published, dict[str, Any]]) -> None:
    model, row = pair
    found = size(model.architecture, model.image_px).published_gmacs(model.reading)
    apart = abs(found / float(row["printed_gmacs"]) - 1)
    assert (apart > GMACS_AGREE) == ("gmacs_why" in row)


def test_every_preset_is_in_the_table() -> None:
    assert set(model_names()) <= {model.architecture for model in MODELS}


def test_m_at_224_contradicts_m_at_384_in_the_paper() -> None:
    """Going from 224 to 384 px multiplies the work by 2.94 at least: 16.0 cannot become 42.2, and 12.7 becomes 41.7."""
    small, large = (next(m for m in MODELS if (m.name, m.image_px) == ("lvvit_m", px)) for px in (224, 384))
    growth = (384 / 224) ** 2
    assert float(small.printed[0]["printed_gmacs"]) * growth > 1.1 * float(large.printed[0]["printed_gmacs"])
    assert small.gmacs * growth < large.gmacs


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[label(row) for row in ROWS])
def test_ablations_of_the_appendix(index: int) -> None:
    """The model that the study trains for a row of Table 8, 9 or 10."""
    row, model = ablated()[index]
    sizes = size_of(model, multiply_adds=False)
    assert sizes.parameters_m["both heads"] == pytest.approx(row["parameters_m"], abs=6e-4)
    assert sizes.fits(row["printed_m"]) == row["fits"]
    assert row["fits"] or "why" in row
    output = model.train()(torch.zeros(2, 3, model.image_px, model.image_px, device="meta"))
    assert isinstance(output, TokenOutput)
    assert output.token_logits.shape == (2, sizes.tokens, 1000)
    assert sizes.tokens == (576 if row["name"] == "at_384" else 196)


def test_every_row_of_these_experiments_is_compared() -> None:
    compared = {(row["experiment"], row["name"]) for row in ROWS}
    tables = {name: study().tables[name] for name, _ in compared}
    assert compared == {(name, row.name) for name, table in tables.items() for row in table.rows}
    assert {name: table.experiment.paper for name, table in tables.items()} == {
        "ablation_training_path": "Table 8", "ablation_patch_embed": "Table 9", "ablation_residual": "Table 10",
    }  # fmt: skip
    for row in ROWS:
        (planned,) = [line for line in tables[row["experiment"]].rows if line.name == row["name"]]
        assert planned.label == row["row"]


def test_table_9_prints_two_numbers_for_the_same_weights() -> None:
    stems = {row["name"]: model.get_submodule("patch_embed") for row, model in ablated() if row["table"] == "Table 9"}
    shapes = [
        {name: tuple(value.shape) for name, value in stems[row].state_dict().items()}
        for row in ("three_strided", "three")
    ]
    assert shapes[0] == shapes[1]
    with torch.device("meta"):
        narrower = create_model("lvvit_s", stem_kernels=(7, 3, 4), stem_strides=(2, 2, 4))
    assert count_parameters(narrower) / 1e6 == pytest.approx(24.935, abs=6e-4)


def test_the_page_has_todays_counts() -> None:
    """docs/models.md is made of recorded lines; a change of a model must show there."""
    lines = read_results("models")
    recorded = {(line["model"], line["image_px"]): line for line in lines if line["kind"] == "model"}
    assert list(recorded) == [(model.name, model.image_px) for model in MODELS], "run python bench/models.py --record"
    for model in MODELS:
        line, sizes = recorded[model.name, model.image_px], parameters_of(model.architecture, model.image_px)
        assert line["ours_m"] == pytest.approx(sizes.parameters_m["both heads"])
        assert (line["tokens"], line["official_m"]) == (sizes.tokens, model.parameters_m)
        if model.gmacs < LARGE_GMACS:
            assert line["gmacs"] == pytest.approx(size(model.architecture, model.image_px).gmacs)
    of_rows = [line["ours_m"] for line in lines if line["kind"] == "ablation"]
    assert of_rows == pytest.approx([row["parameters_m"] for row in ROWS], abs=6e-4)
