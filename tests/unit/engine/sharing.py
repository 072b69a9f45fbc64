"""A training shared by processes, as the loop does it, in a form that prints nothing and returns all its numbers.

Run by the tests alone and, as `python -m tests.unit.engine.sharing COUNT OUT SCENARIOS`, in so many processes. They are
forked after the imports, which take longer than the training; how a launcher starts them, test_processes looks at.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2

from tests.conftest import machine_settings
from tokenlabel.core.seeds import derived_seed
from tokenlabel.data.manifest import load_manifest
from tokenlabel.engine.batch_plan import BatchPlan
from tokenlabel.engine.parallel import ParallelModel, load_whole_state, whole_state
from tokenlabel.engine.processes import ALONE, Processes, join_processes
from tokenlabel.engine.validation import CenterCrops, measure_accuracy
from tokenlabel.models import create_model, draw_mix_box

IMAGES, CLASSES, EPOCHS = 48, 10, 2


def train(
    processes: Processes = ALONE, *, sharding: str = "none", compiled: bool = False, recompute: bool = False,
    channels_last: bool = False,
    tokens: bool = True, unused_head: bool = False, unreadable: tuple[int, ...] = (), resume: str | None = None,
    stop_after: int | None = None, photographs: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Two epochs of four steps of 12 photographs in micro-batches of 3; returns every loss, draw and weight."""
    torch.manual_seed(0)
    pictures, classes = torch.rand(IMAGES, 3, 32, 32), torch.arange(IMAGES) % CLASSES
    model = create_model(
        "lvvit_t", num_classes=CLASSES, image_px=32, depth=2, width=24, heads=2, stem_channels=8, stochastic_depth=0.2
    )
    model.aux_head.requires_grad_(tokens or unused_head)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    model.set_grad_checkpointing(recompute)
    parallel = ParallelModel(model, processes, sharding=sharding, compiled=compiled)
    average = parallel.average(0.9)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    plan = BatchPlan(
        lambda epoch: np.random.default_rng(epoch).permutation(IMAGES), IMAGES, batch_size=12, micro_batch=3,
        processes=processes,
    )  # fmt: skip
    done, losses, draws, norms, accuracy = 0, [], [], [], []
    if resume is not None:
        saved = torch.load(resume, weights_only=True)
        done = saved["done"]
        parallel.load_states(optimizer, saved["model"], saved["optimizer"])
        load_whole_state(average.module, saved["averaged"])
    for number in range(done, EPOCHS * plan.steps_per_epoch):
        epoch, step = divmod(number, plan.steps_per_epoch)
        model.train()
        micro_batches = next(plan.steps(epoch, step))
        loss = torch.zeros(())
        read = 12 - 3 * len(unreadable)
        for micro in micro_batches:
            torch.manual_seed(derived_seed("step", 0, epoch, step, micro.index))
            box = draw_mix_box((2, 2), 1.0, random.Random(derived_seed("mix", 0, epoch, step, micro.index)))
            last = micro is micro_batches[-1]
            with torch.enable_grad() if last else parallel.accumulating():
                if micro.index in unreadable:
                    parallel.idle()
                    continue
                output = parallel.forward(pictures[micro.rows], box)
                own = torch.nn.functional.cross_entropy(output.class_logits, classes[micro.rows])
                if tokens and not unused_head:
                    logits = output.token_logits.flatten(0, 1)
                    own = own + torch.nn.functional.cross_entropy(logits, classes[micro.rows].repeat_interleave(4))
                share = len(micro.rows) / read
                (own * share * processes.count).backward()
            loss = loss + own.detach() * share
            draws.append((number, micro.index, box.rows, box.cols, micro.rows.tolist()))
        losses.append(float(processes.sum(loss)))
        norms.append(float(parallel.clip(1.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, step=number + 1)
        if photographs is not None and number == 3:
            accuracy = [measure(measured, Path(photographs), processes) for measured in (model, average.module)]
        if number + 1 == stop_after:
            break
    model_state, optimizer_state = parallel.states(optimizer)
    averaged = whole_state(average.module)
    whole = parallel.whole(average.module)
    if processes.is_main:  # what is saved as model_ema.safetensors
        assert all(torch.equal(whole.state_dict()[name], value) for name, value in averaged.items())
    return {
        "done": number + 1, "losses": losses, "norms": norms, "draws": draws, "model": model_state,
        "optimizer": optimizer_state, "averaged": averaged, "accuracy": accuracy, "forward": type(parallel.forward).__name__,
    }  # fmt: skip


def measure(model: torch.nn.Module, folder: Path, processes: Processes) -> dict[str, float]:
    """Accuracy over the photographs of a workplace, batches of five; the classes are not these photographs'."""
    machine = machine_settings(folder / "data", micro_batch=5)
    manifest = load_manifest(folder / "manifest", "val")
    manifest = replace(manifest, class_index=manifest.class_index % CLASSES)
    crops = CenterCrops(manifest, machine, 32, 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3)
    return measure_accuracy(
        model,
        crops,
        machine,
        num_classes=CLASSES,
        device=torch.device("cpu"),
        precision=torch.float32,
        processes=processes,
    )


def main() -> None:
    """Runs scenarios one after the other in all processes; what process r found lies in OUT/NAME-r.pt."""
    count, out, scenarios = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": count,
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            }
            os.environ.update({name: str(value) for name, value in place.items()})
            run_scenarios(out, scenarios)
            return
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))


def run_scenarios(out: Path, scenarios: dict[str, Any]) -> None:
    """The same, in one of the processes."""
    with join_processes("cpu") as processes:
        for name, options in scenarios.items():
            try:
                found = train(processes, **options)
            except RuntimeError as error:
                if not options.get("unused_head"):
                    raise
                found = {"error": str(error)}
            torch.save(found, out / f"{name}-{processes.rank}.pt")


if __name__ == "__main__":
    main()
