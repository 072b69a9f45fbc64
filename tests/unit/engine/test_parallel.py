"""One process with four micro-batches a step against two and four real processes over gloo: the same training."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import machine_settings, write_manifests
from tokenlabel.engine.batch_norms import RunningStatistics
from tokenlabel.engine.parallel import ParallelModel, repeated_blocks, synchronise_norms
from tokenlabel.engine.processes import ALONE
from tokenlabel.models import create_model, create_segmenter

from .sharing import train

TOLERANCE = 1e-5  # relative, of float32 losses, gradient norms and weight tensors: gradients are added in another order
TWO = {
    "ddp": {},
    "hard": {"tokens": False},
    "unreadable": {"unreadable": [2]},
    "channels_last": {"channels_last": True, "recompute": True},
    "fsdp": {"sharding": "fsdp", "channels_last": True, "unreadable": [2]},
    "fsdp_hard": {"sharding": "fsdp", "tokens": False, "recompute": True},
}


def launch(processes: int, out: Path, scenarios: dict[str, Any]) -> None:
    """Runs scenarios of `sharing` in real processes."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "error::FutureWarning:tokenlabel", "-m", "tests.unit.engine.sharing"]
    subprocess.run([*command, str(processes), str(out), json.dumps(scenarios)], check=True, timeout=300)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """What two processes found, and four that continue what one began; 13 photographs of which one is torn."""
    out = tmp_path_factory.mktemp("shared")
    for number, source in enumerate(sorted((photographs / "val").rglob("*.jpg"))[:13]):
        target = out / "data" / "val" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes()[: 500 if number == 6 else None])
    shutil.copytree(out / "data" / "val", out / "data" / "train")
    write_manifests(out / "manifest", machine_settings(out / "data"))
    torch.save(train(stop_after=5), out / "begun.pt")
    begun = {"resume": str(out / "begun.pt")}
    measured = {name: {**TWO[name], "photographs": str(out)} for name in ("ddp", "fsdp")}
    launch(2, out, TWO | measured | {"begun": {"stop_after": 3, "sharding": "fsdp"}, "unused": {"unused_head": True}})
    launch(4, out, {"four": {"photographs": str(out)}, "resumed": begun, "resumed_fsdp": {**begun, "sharding": "fsdp"}})
    return out


def read(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def assert_same_training(shared: dict[str, Any], alone: dict[str, Any]) -> None:
    for name in ("losses", "norms"):
        expected = alone[name][-len(shared[name]) :]
        assert shared[name] == pytest.approx(expected, rel=TOLERANCE)
    for name in ("model", "averaged"):
        assert shared[name].keys() == alone[name].keys()
        for key, value in alone[name].items():
            # of a tensor, not of each weight: AdamW makes a whole step of a gradient that is next to nothing but rounding
            apart = (shared[name][key].float() - value.float()).norm()
            assert apart <= TOLERANCE * value.float().norm(), f"{name} {key}"


@pytest.mark.parametrize("scenario", [*TWO, "four"])
def test_processes_train_as_one_does(found: Path, scenario: str) -> None:
    options = {name: value for name, value in TWO.get(scenario, {}).items() if name in ("tokens", "unreadable")}
    alone = train(**options)
    ranks = [read(path) for path in sorted(found.glob(f"{scenario}-?.pt"))]
    assert len(ranks) == (4 if scenario == "four" else 2)
    assert_same_training(ranks[0], alone)
    assert (
        sorted(draw for rank in ranks for draw in rank["draws"]) == alone["draws"]
    )  # each micro-batch once, drawn alike
    assert all(rank["losses"] == ranks[0]["losses"] for rank in ranks)
    assert ranks[0]["forward"] == ("FSDPLVViT" if "fsdp" in scenario else "DistributedDataParallel")


@pytest.mark.parametrize("scenario", ["ddp", "four", "fsdp"])
def test_a_shared_validation_counts_every_photograph_once(found: Path, scenario: str) -> None:
    options = {name: value for name, value in TWO.get(scenario, {}).items() if name in ("tokens", "unreadable")}
    alone = train(**options, photographs=str(found))["accuracy"]
    assert [(one["val_images"], one["val_skipped"]) for one in alone] == [(12, 1), (12, 1)]
    assert alone[0]["top5"] > 0
    for path in found.glob(f"{scenario}-?.pt"):
        assert read(path)["accuracy"] == alone


@pytest.mark.parametrize("scenario", ["resumed", "resumed_fsdp"])
def test_four_processes_continue_what_one_began(found: Path, scenario: str) -> None:
    resumed = read(found / f"{scenario}-0.pt")
    assert len(resumed["losses"]) == 3
    assert_same_training(resumed, train())


def test_one_process_continues_what_shards_began(found: Path, tmp_path: Path) -> None:
    torch.save(read(found / "begun-0.pt"), tmp_path / "begun.pt")
    assert_same_training(train(resume=str(tmp_path / "begun.pt")), train())


def test_alone_a_resumed_training_equals_the_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    torch.save(train(stop_after=5), tmp_path / "begun.pt")
    resumed, whole = train(resume=str(tmp_path / "begun.pt")), train()
    assert resumed["losses"] == whole["losses"][5:]
    assert all(torch.equal(resumed["model"][name], value) for name, value in whole["model"].items())
    assert all(torch.equal(resumed["averaged"][name], value) for name, value in whole["averaged"].items())


def test_a_parameter_without_gradient_is_said_not_searched_for(found: Path) -> None:
    """A head takes part that no loss reads: DDP stops in the second step, since it does not search the graph in every one."""
    assert "Expected to have finished reduction in the prior iteration" in read(found / "unused-0.pt")["error"]


@pytest.mark.campaign
@pytest.mark.filterwarnings("default")  # torch's compiler expects its own warnings to be none
def test_compiled_blocks_train_as_the_others_do() -> None:
    compiled, plain = train(compiled=True, stop_after=2), train(stop_after=2)
    assert compiled["losses"] == pytest.approx(
        plain["losses"], rel=TOLERANCE
    )  # stochastic depth drops the same branches
    assert compiled["model"].keys() == plain["model"].keys()


@pytest.mark.campaign
def test_compiled_blocks_are_shared_too(tmp_path: Path) -> None:
    launch(2, tmp_path, {"ddp": {"compiled": True}, "fsdp": {"compiled": True, "sharding": "fsdp"}})
    for scenario in ("ddp", "fsdp"):
        assert_same_training(read(tmp_path / f"{scenario}-0.pt"), train())


def test_blocks_are_found_in_other_networks_too() -> None:
    names = {}
    for architecture in ("t2t_vit_14", "timm/resnet18", "timm/vit_tiny_patch16_224"):
        blocks = repeated_blocks(create_model(architecture, num_classes=3, image_px=224))
        names[architecture] = len(blocks), {type(block).__name__ for block in blocks}
    assert names["t2t_vit_14"][1] == {"Block"}
    assert names["timm/vit_tiny_patch16_224"] == (12, {"Block"})
    assert names["timm/resnet18"] == (8, {"BasicBlock"})


def test_alone_nothing_is_wrapped() -> None:
    model = torch.nn.Linear(2, 2)
    parallel = ParallelModel(model, ALONE, sharding="fsdp")
    assert parallel.forward is parallel.model is model
    with parallel.accumulating():
        parallel.forward(torch.ones(1, 2)).sum().backward()
    assert float(parallel.clip(1e-3)) == pytest.approx(2.0**0.5 * (2 + 1) ** 0.5)


def test_the_norms_of_a_segmenters_heads_are_synchronised_and_the_backbones_are_not() -> None:
    """As several processes on GPUs have it; names and values stay, and the running statistics are left to torch."""
    head = {
        "kind": "fcn", "channels": 8, "convolutions": 1, "concatenate_input": True, "dropout": 0.1,
        "levels": {"blocks": "even", "scales": [1.0, 2.0], "deepest_channels": None},
        "auxiliary": {"level": 0, "channels": 8, "convolutions": 1, "dropout": 0.1},
    }  # fmt: skip
    backbone = create_model("lvvit_t", 5, 32, depth=2, width=24, heads=2, stem_channels=8)
    model = create_segmenter(backbone, head, 3)
    before = model.state_dict()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    synchronise_norms(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    own = {name for name in norms if name.startswith("backbone.")}
    synchronised = {name for name, module in model.named_modules() if isinstance(module, torch.nn.SyncBatchNorm)}
    assert own  # of the stem
    assert synchronised == norms.keys() - own
    assert {name.split(".")[0] for name in synchronised} == {"head", "auxiliary", "rescalings"}
    watched = RunningStatistics(model, ALONE)
    assert len(watched._buffers) == 2 * len(own)
