"""The loop on a task that has nothing to do with photographs: a small network on random numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import machine_settings
from tokenlabel.core.errors import CheckpointError, ConfigError
from tokenlabel.engine.failures import TrainingError
from tokenlabel.engine.loop import FitResult, Task, fit
from tokenlabel.engine.optimisation import Optimisation
from tokenlabel.engine.reporting import Reporter
from tokenlabel.engine.stopping import DEADLINE_EXIT, Stop, StoppedError

STEPS, EPOCHS = 4, 3
OPTIMISATION = Optimisation(
    epochs=EPOCHS, cooldown_epochs=0, learning_rate=1e-2, min_learning_rate=1e-4, warmup_learning_rate=1e-4, warmup_epochs=1,
    weight_decay=0.05, clip_norm=0.5, ema_decay=0.9,
)  # fmt: skip


class KilledError(Exception):
    """Ends a training between two of its instructions, as a kill does."""


@dataclass(frozen=True)
class Numbers:
    values: torch.Tensor
    target: torch.Tensor
    index: int
    skipped: int = 0

    @property
    def images_count(self) -> int:
        return len(self.values)

    @property
    def sample_ids(self) -> np.ndarray[Any, Any]:
        return np.arange(len(self.values), dtype=np.uint64) + np.uint64(100 * self.index)

    def to(self, device: torch.device) -> Numbers:
        return dataclasses.replace(self, values=self.values.to(device), target=self.target.to(device))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def micro_batches(epoch: int, step: int) -> list[Numbers]:
    """A step of ten rows in micro-batches of four, four and two; three more could not be read."""
    generator = torch.Generator().manual_seed(1000 * epoch + step)
    values = torch.randn(10, 6, generator=generator)
    target = (values.sum(1) > 0).long()
    parts = zip(values.split(4), target.split(4), strict=True)
    return [Numbers(part, wanted, index, skipped=index) for index, (part, wanted) in enumerate(parts)]


def batches(epoch: int, first_step: int) -> Iterator[list[Numbers]]:
    for step in range(first_step, STEPS):
        yield micro_batches(epoch, step)


def loss(model: nn.Module, batch: Numbers, epoch: int, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    errors = nn.functional.cross_entropy(model(batch.values), batch.target)
    return 2 * errors, {"errors": errors, "ones": batch.target.sum()}


TASK = Task(
    batches=batches, steps_per_epoch=STEPS, loss=loss, parts=("errors", "ones"), counters=("ones",),
    validate=lambda model, look: {"bias": float(model[4].bias.detach()[0])}, validate_every_epochs=2,
)  # fmt: skip


def train(folder: Path, task: Task = TASK, optimisation: Optimisation = OPTIMISATION, **changes: Any) -> FitResult:
    folder.mkdir(exist_ok=True)
    machine = machine_settings(folder) | {"checkpoint_seconds": 1e-9, "log_every_steps": 3} | changes.pop("machine", {})
    reporter = Reporter(folder, epochs=EPOCHS, steps_per_epoch=STEPS, machine=machine, title="numbers")
    options: dict[str, Any] = {
        "digest": "a", "settings": {"recipe": {"epochs": EPOCHS}}, "seed": 0, "device": torch.device("cpu"),
        "precision": torch.float32, "machine": machine, "reporter": reporter,
    }  # fmt: skip
    result = fit(changes.pop("model", None) or network(), task, optimisation, folder, **options | changes)
    reporter.close(None)
    return result


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s", "memory_mb")} for line in lines]


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    averaged = result.averaged.state_dict() if result.averaged else {}
    return {**result.model.state_dict(), **{f"averaged.{name}": value for name, value in averaged.items()}}


def require_equal(first: FitResult, second: FitResult) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def killing(kill: Callable[[int, int, int], bool]) -> Task:
    def killed(model: nn.Module, batch: Numbers, epoch: int, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if kill(epoch, step, batch.index):
            raise KilledError
        return loss(model, batch, epoch, step)

    return dataclasses.replace(TASK, loss=killed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), logged(folder)


def test_lines_say_means_over_photographs_and_sums_of_counts(whole: tuple[FitResult, list[dict[str, float]]]) -> None:
    result, lines = whole
    assert [(line["epoch"], line.get("step")) for line in lines] == [
        (0, 2), (0, None), (1, 2), (1, None), (2, 2), (2, None),
    ]  # fmt: skip
    assert lines[1]["images"] == 40
    assert lines[1]["skipped"] == STEPS * (0 + 1 + 2)
    ones = sum(int(batch.target.sum()) for step in range(STEPS) for batch in micro_batches(0, step))
    assert lines[1]["ones"] == ones
    for line in lines:
        assert line["loss"] == pytest.approx(2 * line["errors"], rel=1e-6)
        assert line["grad_norm"] > 0
    assert [line["learning_rate"] for line in lines[1::2]] == pytest.approx([1e-4, 7.525e-3, 2.575e-3])
    assert ["bias" in line for line in lines] == [False, False, False, True, False, False]
    assert (result.images, result.skipped, result.epochs, result.finished) == (3 * 40, 3 * 12, 3, True)


def test_one_epochs_line_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []

    def noted(model: nn.Module, batch: Numbers, epoch: int, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found, parts = loss(model, batch, epoch, step)
        seen.append((float(found.detach()), len(batch.values)))
        return found, parts

    train(tmp_path, dataclasses.replace(TASK, loss=noted), dataclasses.replace(OPTIMISATION, epochs=1, warmup_epochs=0))
    expected = sum(value * count for value, count in seen) / sum(count for _, count in seen)
    assert logged(tmp_path)[-1]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("number", range(1, STEPS * EPOCHS))
def test_killed_in_any_step_and_continued_it_is_the_same_training(
    whole: tuple[FitResult, list[dict[str, float]]], tmp_path: Path, number: int
) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, killing(lambda epoch, step, index: epoch * STEPS + step == number and index == 1))
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == min(number, 2)
    resumed: list[tuple[int, int]] = []
    task = killing(lambda epoch, step, index: bool(resumed.append((epoch, step))))
    require_equal(train(tmp_path, task), whole[0])
    assert resumed[0] == divmod(number, STEPS)  # nothing is done twice but the step that was cut off
    assert logged(tmp_path) == whole[1]


def test_a_checkpoint_an_epoch_repeats_the_epoch(
    whole: tuple[FitResult, list[dict[str, float]]], tmp_path: Path
) -> None:
    rare = {"checkpoint_seconds": 600.0}
    with pytest.raises(KilledError):
        train(tmp_path, killing(lambda epoch, step, index: (epoch, step) == (1, 3)), machine=rare)
    assert [path.name for path in tmp_path.glob("checkpoint-*.pt")] == ["checkpoint-00000004.pt"]
    assert logged(tmp_path)[-1]["step"] == 2  # logged, and logged again
    require_equal(train(tmp_path, machine=rare), whole[0])
    assert logged(tmp_path) == whole[1]


def test_killed_while_it_validates_no_step_is_repeated(
    whole: tuple[FitResult, list[dict[str, float]]], tmp_path: Path
) -> None:
    def validate(model: nn.Module, look: Callable[[], None]) -> dict[str, float]:
        raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, dataclasses.replace(TASK, validate=validate), machine={"checkpoint_seconds": 600.0})
    seen: list[int] = []
    require_equal(train(tmp_path, killing(lambda epoch, step, index: bool(seen.append(epoch)))), whole[0])
    assert set(seen) == {2}
    assert logged(tmp_path) == whole[1]


def test_a_validation_that_would_outlast_the_deadline_is_left_and_repeated(
    whole: tuple[FitResult, list[dict[str, float]]], tmp_path: Path
) -> None:
    stop, measured = Stop(), []

    def validate(model: nn.Module, look: Callable[[], None]) -> dict[str, float]:
        for batch in range(3):
            look()
            measured.append(batch)
            if len(measured) == 2:  # the deadline comes near while the second batch is measured
                stop.deadline = time.time()
        return {"top1": float(len(measured))}

    task = dataclasses.replace(TASK, validate=validate)
    with pytest.raises(
        StoppedError, match=r"stopped by the deadline; epoch 1, while validating: the state is saved"
    ) as caught:
        train(tmp_path, task, stop=stop)
    assert caught.value.exit_code == DEADLINE_EXIT
    assert measured == [0, 1]
    require_equal(train(tmp_path, task), whole[0])
    assert measured[2:] == [0, 1, 2]
    lines = logged(tmp_path)
    assert lines[3].pop("top1") == 5
    assert lines == [{key: value for key, value in line.items() if key != "bias"} for line in whole[1]]


def test_legs_are_the_unbroken_training(whole: tuple[FitResult, list[dict[str, float]]], tmp_path: Path) -> None:
    first = train(tmp_path, until_epoch=1)
    assert (first.epochs, first.finished) == (1, False)
    assert train(tmp_path, until_epoch=1).epochs == 1  # again: nothing to do
    second = train(tmp_path, until_epoch=2)
    assert second.images == 80
    require_equal(train(tmp_path, until_epoch=3), whole[0])
    assert logged(tmp_path) == whole[1]


@pytest.mark.parametrize(
    "optimisation", [{"clip_norm": None}, {"ema_decay": None}], ids=["no clipping", "no averaging"]
)
def test_a_float16_training_with_its_loss_scale_continues_exactly(tmp_path: Path, optimisation: dict[str, Any]) -> None:
    recipe = dataclasses.replace(OPTIMISATION, **optimisation)
    options: dict[str, Any] = {"optimisation": recipe, "precision": torch.float16}
    unbroken = train(tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        train(tmp_path / "run", killing(lambda epoch, step, index: (epoch, step, index) == (1, 2, 2)), **options)
    require_equal(train(tmp_path / "run", **options), unbroken)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert all(math.isfinite(value) for line in logged(tmp_path / "run") for value in line.values())


def test_accumulated_micro_batches_are_the_step_in_one_piece(tmp_path: Path) -> None:
    """Without what works on a micro-batch as a whole (batch norm, dropout) how a step is cut changes rounding only."""

    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Identity(), nn.Linear(8, 2))

    def in_one_piece(epoch: int, first_step: int) -> Iterator[list[Numbers]]:
        for parts in batches(epoch, first_step):
            yield [
                Numbers(torch.cat([part.values for part in parts]), torch.cat([part.target for part in parts]), 0, 3)
            ]

    cut = train(tmp_path / "cut", model=plain())
    piece = train(tmp_path / "piece", dataclasses.replace(TASK, batches=in_one_piece), model=plain())
    for name, value in weights(cut).items():
        torch.testing.assert_close(value, weights(piece)[name], rtol=1e-4, atol=1e-6)
    for one, other in zip(logged(tmp_path / "cut"), logged(tmp_path / "piece"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_loss_that_is_not_finite_names_the_step_and_reaches_no_checkpoint(tmp_path: Path) -> None:
    def spoiled(
        model: nn.Module, batch: Numbers, epoch: int, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found, parts = loss(model, batch, epoch, step)
        return (found * float("inf") if (epoch, step, batch.index) == (1, 2, 1) else found), parts

    task = dataclasses.replace(
        TASK, loss=spoiled, describe=lambda ids: [f"photograph {identifier}" for identifier in ids]
    )
    with pytest.raises(TrainingError, match=r"epoch 1, step 2") as caught:
        train(tmp_path, task)
    for part in (
        "checkpoint-00000006.pt",
        "Photographs: photograph 100, photograph 101, photograph 102, photograph 103. ",
    ):
        assert part in str(caught.value)  # those of the micro-batch, not of the step
    for done_already in ("clip_norm", "float32"):
        assert done_already not in str(caught.value)
    for path in tmp_path.glob("checkpoint-*.pt"):
        saved = torch.load(path, weights_only=True)["states"]["model"]
        assert all(torch.isfinite(value).all() for value in saved.values())


def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path: Path) -> None:
    """A loss may be finite and its gradient not; without clipping nobody looks at the gradient."""

    def steep(model: nn.Module, batch: Numbers, epoch: int, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found, parts = loss(model, batch, epoch, step)
        zero = (model[4].weight - model[4].weight.detach()).abs().sum()  # type: ignore[index]
        return found + (torch.sqrt(zero) if (epoch, step) == (0, 3) else 0), parts

    with pytest.raises(TrainingError, match=r"epoch 0, step 3.*weights"):
        train(tmp_path, dataclasses.replace(TASK, loss=steep), dataclasses.replace(OPTIMISATION, clip_norm=None))
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*.pt"))] == [
        "checkpoint-00000002.pt",
        "checkpoint-00000003.pt",
    ]


@pytest.mark.parametrize(
    ("optimisation", "task", "said"),
    [
        ({"epochs": 0}, {}, "epochs 0: nothing would be trained"),
        ({"learning_rate": 0.0}, {}, "learning_rate 0: nothing would be trained"),
        ({}, {"steps_per_epoch": 0}, "steps per epoch 0: nothing would be trained"),
    ],
    ids=["epochs", "learning rate", "steps"],
)
def test_what_would_train_nothing_is_refused(
    tmp_path: Path, optimisation: dict[str, Any], task: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, dataclasses.replace(TASK, **task), dataclasses.replace(OPTIMISATION, **optimisation))


def test_an_epoch_of_which_nothing_can_be_read_ends_the_training(tmp_path: Path) -> None:
    """Else it would end well, with the weights that it began with."""

    def unreadable(epoch: int, first_step: int) -> Iterator[list[Numbers]]:
        for step in range(first_step, STEPS):
            yield [
                dataclasses.replace(batch, values=batch.values[:0], target=batch.target[:0], skipped=len(batch.values))
                for batch in micro_batches(epoch, step)
            ]

    with pytest.raises(TrainingError, match=r"^none of the photographs of epoch 0 can be read[^\n]*$"):
        train(tmp_path, dataclasses.replace(TASK, batches=unreadable))


def test_other_settings_are_listed_and_refused_unless_allowed(tmp_path: Path) -> None:
    train(tmp_path, until_epoch=1, settings={"recipe": {"epochs": 3, "weight_decay": 0.05}, "seed": 0})
    changed: dict[str, Any] = {"digest": "b", "settings": {"recipe": {"epochs": 3, "weight_decay": 0.5}, "seed": 0}}
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path, **changed)
    for part in ("recipe.weight_decay: 0.05 then, 0.5 now", "--allow-changed"):
        assert part in str(caught.value)
    assert "epochs" not in str(caught.value).replace("checkpoint-", "")
    assert "\n" not in str(caught.value)
    heavier = dataclasses.replace(OPTIMISATION, weight_decay=0.5)
    allowed = train(tmp_path, optimisation=heavier, allow_changed=True, until_epoch=2, **changed)
    assert allowed.changed == ["recipe.weight_decay: 0.05 then, 0.5 now"]
    last = train(tmp_path, optimisation=heavier, **changed)  # the checkpoints are of the new settings now
    assert last.changed == allowed.changed
    saved = torch.load(tmp_path / "checkpoint-00000012.pt", weights_only=True)
    assert {group["weight_decay"] for group in saved["states"]["optimizer"]["param_groups"]} == {0.0, 0.5}


def test_another_micro_batch_goes_on_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, until_epoch=1, micro_batch=4)
    assert train(tmp_path, until_epoch=2, micro_batch=4).changed == []
    assert "numbers will differ" not in caplog.text
    assert train(tmp_path, micro_batch=5).changed == ["machine.micro_batch: 4 then, 5 now"]
    assert "numbers will differ a little from an unbroken run's: machine.micro_batch: 4 then, 5 now" in caplog.text


def test_a_batch_that_makes_fewer_steps_still_leaves_its_checkpoints_newest(tmp_path: Path) -> None:
    """Twice the batch is half the steps: numbers begin lower than those of the checkpoints that are there."""
    train(tmp_path, until_epoch=2)
    fewer = dataclasses.replace(TASK, batches=lambda epoch, first: list(batches(epoch, first))[:1], steps_per_epoch=1)
    changed: dict[str, Any] = {
        "task": fewer,
        "digest": "b",
        "settings": {"recipe": {"epochs": EPOCHS, "batch_size": 2}},
    }
    assert train(tmp_path, allow_changed=True, **changed).epochs == EPOCHS
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 2
    again: list[int] = []
    seen = dataclasses.replace(fewer, batches=lambda epoch, first: again.append(epoch) or fewer.batches(epoch, first))  # type: ignore[func-returns-value]
    train(tmp_path, **changed | {"task": seen})
    assert again == []  # the third epoch is not trained again


def test_a_checkpoint_of_another_model_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    train(tmp_path, until_epoch=1)
    wider = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 2))
    for allow in (False, True):
        with pytest.raises(
            CheckpointError, match=r"another model: 0.weight is \(8, 6\) there and \(9, 6\) here.* and 4 more"
        ):
            train(tmp_path, model=wider, allow_changed=allow)
