"""Where a training runs: on how many nodes, and in how many processes on all of them, one GPU each.

Decides by `machine.processes`, `machine.nodes` and `machine.nodes_of`. Called by the plan of a study, which refuses names that
no model has and batches that so many processes cannot share, by the cost model and by the rules.
"""

from __future__ import annotations

from collections.abc import Iterable

from .config import Config, Machine
from .errors import unknown_name
from .planned import Training


def nodes_of(machine: Machine, run: Training) -> int:
    """Nodes of a training job: what `nodes_of` says of the model at this resolution, or of the model, or `nodes`.

    One of a training for segmentation, whose batch of 16 has nothing to share among more.
    """
    if run.spec["stage"] == "segment":
        return 1
    model = run.name.split("-", 1)[0]
    of_all = machine.nodes_of.get(model, machine.nodes)
    return machine.nodes_of.get(f"{model}@{run.spec['image_px']}", of_all)


def processes_of(machine: Machine, run: Training) -> int:
    """Processes of a training job on all its nodes."""
    return nodes_of(machine, run) * machine.processes


def unused_nodes_of(machine: Machine, runs: Iterable[Training]) -> dict[str, list[int]]:
    """Keys MODEL@PX of `machine.nodes_of` by which no planned run goes, and the pixels that runs of that model have.

    Not refused: a cap or a first light changes what is planned, and the same machine settings serve several studies.
    """
    pixels: dict[str, set[int]] = {}
    for run in runs:
        pixels.setdefault(run.name.split("-", 1)[0], set()).add(run.spec["image_px"])
    unused = {}
    for key in machine.nodes_of:
        model, _, px = key.partition("@")
        if px and int(px) not in pixels.get(model, ()):
            unused[key] = sorted(pixels.get(model, ()))
    return unused


def check_nodes_of(config: Config) -> None:
    """Refuses a key of `machine.nodes_of` that names no model.

    Raises:
        ConfigError: with the model that may be meant.
    """
    for key in config.machine.nodes_of:
        model = key.split("@", 1)[0]
        if model not in config.models:
            raise unknown_name("model of machine.nodes_of", model, config.models)
