"""One run: builds model, data and loss from a spec, trains or continues, and leaves weights and a marker.

Called by the command. Writes model.safetensors (and model_ema.safetensors where the recipe averages) with the spec in
their metadata, and config.json, which says what the model is: `load_model` and timm read the folder. A leg of a long run
leaves its checkpoint and a marker of its own instead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch

from ..core.config import Recipe, describe_problems
from ..core.errors import CheckpointError, ConfigError, LabelError, OutputError
from ..core.files import Lease, read_json, remove_leftovers_in, sha256_of, write_json
from ..core.identity import digest_of
from ..core.log import logger
from ..core.markers import read_kept, write_marker
from ..core.recipes import scaled_rate, with_batch
from ..data.manifest import Manifest
from ..engine.checkpoints import Checkpoints
from ..engine.device import choose_device, choose_precision, set_tf32, set_threads
from ..engine.loop import FitResult, Task, fit
from ..engine.optimisation import Optimisation
from ..engine.processes import ALONE, Processes, join_processes
from ..engine.reporting import Reporter
from ..engine.stopping import DEADLINE_EXIT, Stop, StoppedError, find_deadline, put_back_into_queue, stopping_after_step
from ..engine.validation import CenterCrops, measure_accuracy
from ..labels import LabelStore
from ..models import TokenModel, describe_model, save_weights, settings_of_spec, write_model_config
from ..models.weights import WEIGHTS_FILE
from .augment import Augmentation
from .batches import Batches, TrainingSet
from .preflight import LabelCoverage, check_before_training
from .start import build_model
from .supervision import Supervision

DONE = "done.json"
REQUEUED_S = 120.0  # from the request to Slurm's signal; nothing else may happen in between


def train_run(
    spec: dict[str, Any],
    machine: dict[str, Any],
    *,
    manifests: dict[str, Manifest],
    labels_folder: Path | None,
    start_folder: Path | None,
    seed: int,
    done: Path,
    eval_crop: float | None = None,
    until_epoch: int | None = None,
    legs: int = 1,
    deadline_s: float | None = None,
    requeue: bool = False,
    allow_changed: bool = False,
) -> dict[str, Any]:
    """Trains one run, or a leg of it, and writes its marker.

    At the deadline a leg hands over: its marker says how far it came, and the next leg continues there. The last one, or a run in
    one piece, ends with DEADLINE_EXIT; with `requeue` its Slurm job goes back into the queue, if it came forward at all.

    Args:
        spec: the run's spec (stage train or finetune).
        machine: device, precision, batch split, workers.
        manifests: train and val.
        labels_folder: of the annotator's shards, None for hard labels.
        start_folder: seed folder of the run that fine-tuning starts from.
        seed: of the run.
        done: the marker; weights, checkpoints and metrics lie beside it.
        eval_crop: share of the shorter side that evaluation keeps, for config.json; None: the machine's validation_crop.
        until_epoch: a leg ends when so many epochs of the run are done; None: the whole run.
        legs: of the run, for its marker.
        deadline_s: seconds from now at which the job will be ended; None: Slurm's end time, if any.
        requeue: whether to ask Slurm to run this job again where the deadline leaves it unfinished.
        allow_changed: whether to continue a run that another spec began.

    Returns:
        what the marker says.

    Raises:
        StoppedError: a signal or the deadline came; the state is saved, its exit_code is for the process.
    """
    started = time.monotonic()
    folder = done.parent
    with (
        join_processes(machine["device"]) as processes,
        _owning(folder, processes) as ownership,
        stopping_after_step(ownership.release, find_deadline(deadline_s)) as stop,
    ):
        recipe = _recipe_of(spec)  # here, so that of several processes one speaks
        marker = {"digest": digest_of(spec), "seed": seed}
        # the main process has waited for the lease, and what it finds now another job may have finished meanwhile
        finished: dict[str, Any] | None = processes.broadcast(
            _finished(folder / DONE, marker, allow_changed) if processes.is_main else None
        )
        if finished is not None:
            logger.info("%s: the run is finished; nothing is left to do. To train it again, delete that folder", folder)
            if until_epoch is None:
                if processes.is_main:
                    if not done.exists():
                        write_json(done, finished)  # Snakemake removed it
                    Checkpoints(folder, "", {}, processes).remove()  # a kill may have come between marker and removal
                return finished
            marker |= {"epochs": until_epoch}
        else:
            job = _Job(
                spec,
                machine,
                recipe,
                manifests,
                labels_folder,
                start_folder,
                seed,
                folder,
                eval_crop,
                until_epoch,
                allow_changed,
            )
            before = _newest_checkpoint(folder)
            try:
                marker |= _train(job, processes, stop, ownership)
                marker |= {"legs": legs} if legs > 1 else {}
            except StoppedError as stopped:
                if stopped.exit_code != DEADLINE_EXIT:
                    raise
                if until_epoch is None:
                    if requeue:
                        _put_back_into_queue(stopped, processes, came_forward=_newest_checkpoint(folder) != before)
                    raise
                logger.warning("%s The next leg does so.", stopped)
                marker |= {"stopped": str(stopped)}
        marker["seconds"] = round(time.monotonic() - started, 3)
        if processes.is_main:
            ownership.check()
            if "weights_sha256" in marker:
                write_marker(done, marker)
                Checkpoints(folder, "", {}, processes).remove()
            else:
                write_json(done, marker)
    return marker


def _newest_checkpoint(folder: Path) -> Path | None:
    """Of the run; the name says after how many steps."""
    return next(iter(Checkpoints(folder, "", {}, ALONE).paths()), None)


def _put_back_into_queue(stopped: StoppedError, processes: Processes, *, came_forward: bool) -> None:
    """Has Slurm run this job again and waits in all processes for the signal with which it ends them; returns where it cannot.

    A job that did not come forward by one step would go round for ever, so it fails instead.
    """
    queued = processes.broadcast(came_forward and put_back_into_queue() if processes.is_main else None)
    if queued:
        logger.warning("%s The Slurm job goes back into the queue and does so.", stopped)
        time.sleep(REQUEUED_S)


@dataclass(frozen=True)
class _Job:
    """What a run is asked to do, as `train_run` was given it."""

    spec: dict[str, Any]
    machine: dict[str, Any]
    recipe: Recipe
    manifests: dict[str, Manifest]
    labels_folder: Path | None
    start_folder: Path | None
    seed: int
    folder: Path
    eval_crop: float | None
    until_epoch: int | None
    allow_changed: bool


def _train(job: _Job, processes: Processes, stop: Stop, ownership: _Ownership) -> dict[str, Any]:
    """Trains; returns what the marker shall say of it."""
    spec, machine, recipe, folder = job.spec, job.machine, job.recipe, job.folder
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    set_tf32(machine["tf32"])
    logger.info("device %s, precision %s, micro-batch %d", device, precision, machine["micro_batch"])
    manifest = job.manifests["train"]
    model = build_model(spec, job.start_folder, job.seed, Path(machine["weights_root"]))
    if machine["grad_checkpointing"]:
        model.set_grad_checkpointing()
    store = _open_labels(job.labels_folder, spec, manifest)
    dataset = TrainingSet(
        manifest, machine, Augmentation(spec["recipe"], spec["image_px"], model.mean, model.std), store, job.seed
    )
    batches = Batches(
        dataset,
        batch_size=recipe.batch_size,
        micro_batch=machine["micro_batch"],
        workers=machine["workers"],
        processes=processes,
    )
    check_before_training(
        spec=spec, machine=machine, recipe=recipe, manifest=manifest, store=store, batches_size=batches.batch_size,
        processes_count=processes.count, classes=manifest.classes,
        parameters=sum(weight.numel() for weight in model.parameters()),
    )  # fmt: skip
    optimisation = _optimisation(recipe, batches.batch_size)
    reporter = Reporter(
        folder, epochs=optimisation.total_epochs, steps_per_epoch=batches.steps_per_epoch, machine=machine,
        title=f"{folder.parent.name} seed {job.seed}", main=processes.is_main,
    )  # fmt: skip
    summary = None
    try:
        result = fit(
            model,
            _task(job, batches, model, device, precision, processes),
            optimisation,
            folder,
            digest=f"{digest_of(spec)}-seed{job.seed}",
            settings={**spec, "seed": job.seed},
            seed=job.seed,
            device=device,
            precision=precision,
            machine=machine,
            reporter=reporter,
            processes=processes,
            stop=stop,
            until_epoch=job.until_epoch,
            allow_changed=job.allow_changed,
            check_owner=ownership.check,
            micro_batch=batches.micro_batch,
        )
        ownership.check()
        marker = {
            "epochs": result.epochs,
            "steps_per_epoch": batches.steps_per_epoch,
            "micro_batch": batches.micro_batch,
            "processes": processes.count,
            "images": result.images,
            "skipped": result.skipped + dataset.unreadable * result.epochs,
            "unreadable": dataset.unreadable,
            **({"changed": result.changed} if result.changed else {}),
        }
        if job.until_epoch is None:
            if processes.is_main:
                marker["weights_sha256"] = _save_results(result, job, model)
            summary = marker | {
                "device": str(device),
                "precision": str(precision).removeprefix("torch."),
                "batch_size": batches.batch_size,
                "learning_rate": optimisation.learning_rate,
                "labels_coverage": None if store is None else LabelCoverage.of(store, manifest).share,
            }
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}). Free space or permission is needed there; the last checkpoint stays."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            reporter.close(summary)
    return marker


def _task(
    job: _Job, batches: Batches, model: TokenModel, device: torch.device, precision: torch.dtype, processes: Processes
) -> Task:
    """What the loop trains and measures."""
    train, machine, image_px = job.manifests["train"], job.machine, job.spec["image_px"]
    crops = CenterCrops(
        job.manifests["val"], machine, image_px, machine["validation_crop"], "bicubic", model.mean, model.std
    )
    supervision = Supervision(job.spec["recipe"], model.num_classes, model.grid, image_px, job.seed)
    return Task(
        batches=batches,
        steps_per_epoch=batches.steps_per_epoch,
        loss=supervision.loss,
        parts=supervision.parts,
        validate=lambda measured, look: measure_accuracy(
            measured, crops, machine, num_classes=model.num_classes, device=device, precision=precision, processes=processes,
            before_batch=look,
        ),
        validate_every_epochs=machine["validate_every_epochs"],
        describe=lambda sample_ids: [
            train.path(row) for row in np.flatnonzero(np.isin(train.sample_id, sample_ids)).tolist()
        ],
    )  # fmt: skip


def _save_results(result: FitResult, job: _Job, model: TokenModel) -> str:
    """Writes what the run is for: weights, and what they are; returns the digest of the last weights."""
    write_model_config(
        job.folder,
        describe_model(
            model,
            job.spec["model"]["architecture"],
            settings_of_spec(job.spec),
            job.manifests["train"].classes,
            crop=job.eval_crop or job.machine["validation_crop"],
        ),
    )
    metadata = {"spec": json.dumps(job.spec), "seed": str(job.seed)}
    save_weights(result.model, job.folder / "model.safetensors", metadata)
    if result.averaged is not None:
        save_weights(result.averaged, job.folder / "model_ema.safetensors", metadata)
    return sha256_of(job.folder / "model.safetensors")


def _recipe_of(spec: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(spec["recipe"])
    except pydantic.ValidationError as error:  # a spec by hand; the workflow's own is validated when it is planned
        problems = describe_problems(error, "recipe").replace("configuration key ", "")
        raise ConfigError(f"spec.json: {problems}. Mend it, or let snakemake write it.") from None


@dataclass(frozen=True)
class _Ownership:
    """The right to write into a run's folder.

    Attributes:
        check: raises where another job took over because this one stood still (suspended by a scheduler, say).
        release: gives it back.
    """

    check: Callable[[], None]
    release: Callable[[], None]


@contextlib.contextmanager
def _owning(folder: Path, processes: Processes) -> Iterator[_Ownership]:
    """Holds the run's lease, in one process for all."""
    if not processes.is_main:
        yield _Ownership(lambda: None, lambda: None)
        return
    with Lease(folder / "run.lease") as lease:
        remove_leftovers_in(folder)
        yield _Ownership(lease.check, lease.release)


def _finished(done: Path, marker: dict[str, Any], allow_changed: bool) -> dict[str, Any] | None:
    """The marker of the whole run, if it is done already and its weights are there.

    Raises:
        CheckpointError: the folder holds another finished run, whose weights would be written over.
    """
    weights = done.parent / WEIGHTS_FILE
    try:
        said = read_json(done)
    except FileNotFoundError:
        kept = read_kept(done)
        if (
            kept
            and marker.items() <= kept.items()
            and weights.is_file()
            and sha256_of(weights) == kept["weights_sha256"]
        ):
            return kept
        return None
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or not weights.is_file():
        return None
    if marker.items() <= said.items():
        return said
    if not allow_changed:
        raise CheckpointError(
            f"{done}: of another run (spec {said.get('digest')}, seed {said.get('seed')}; this one is {marker['digest']}, seed "
            f"{marker['seed']}). Give --done in another folder, or --allow-changed to write over it."
        )
    return None


def _open_labels(folder: Path | None, spec: dict[str, Any], manifest: Manifest) -> LabelStore | None:
    if spec["labels"] is None:
        return None
    if folder is None:
        raise CheckpointError("this run learns from labels; give --labels, the folder of the annotator's shards.")
    store = LabelStore(folder, split="train", manifest_digests=manifest.shard_digests)
    found, expected = store.attributes.labels_digest, digest_of(spec["labels"])
    if found != expected:
        raise LabelError(
            f"labels {folder} of {store.annotator}: made by another annotator or with other settings (spec {found}, "
            f"the run learns from {expected}). Give the right --labels folder."
        )
    return store


def _optimisation(recipe: Recipe, batch_size: int) -> Optimisation:
    recipe = with_batch(recipe, batch_size)  # the one really used: a small data set's is smaller
    return Optimisation(
        epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        learning_rate=scaled_rate(recipe, batch_size),
        min_learning_rate=recipe.min_learning_rate,
        warmup_learning_rate=recipe.warmup_learning_rate,
        warmup_epochs=recipe.warmup_epochs,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        ema_decay=recipe.ema_decay,
    )
