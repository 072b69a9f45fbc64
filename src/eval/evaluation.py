"""Everything that is measured of a trained run or a published checkpoint: accuracy, calibration, cost, further test sets.

Both go the same way, so that published numbers check the very code that measures our runs. Writes nothing; called by the
evaluation jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.files import sha256_of
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..engine.validation import CenterCrops
from ..labels import LabelStore
from ..models import TokenModel, count_multiply_adds, count_parameters, load_model, load_published
from .agreement import measure_agreement
from .measures import ClassAccuracy, Measured, measure_answers
from .real_labels import find_real_labels, labels_of_rows, read_real_labels
from .speed import measure_speed
from .test_sets import ImageSet, columns_of, open_image_set


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        numbers: the JSON document's: top1, top5, ece and further accuracies in percent, image counts, parameters (10^6),
            multiply-adds (10^9), speed and memory, the weights and their sha256. What was not measured is absent.
        classes: of the validation split.
    """

    numbers: dict[str, Any]
    classes: tuple[ClassAccuracy, ...]


def evaluate_run(
    seed_folder: Path, evaluation: dict[str, Any], machine: dict[str, Any], manifest: Manifest,
    labels_folder: Path | None = None,
) -> Evaluation:  # fmt: skip
    """Measures one run.

    Args:
        seed_folder: the run's folder of one seed.
        evaluation: crop, interpolation, use_ema; real_labels and test_sets where there are any.
        machine: roots, device, precision, workers.
        manifest: of the validation split.
        labels_folder: an annotator's maps of that split, to compare the tokens with; None: not compared.

    Raises:
        ConfigError: settings that make no sense.
        CheckpointError: the run has no weights, or they give logits that are no numbers.
        DataError: photographs, labels or test sets are missing or do not fit.
    """
    check_settings(evaluation)
    further = Further.open(evaluation, machine, manifest)
    loaded = load_model(seed_folder, use_ema=evaluation["use_ema"])
    job = _Job(loaded.model, loaded.report.where, evaluation, machine, manifest)
    measured = job.measure(further, None)
    numbers = measured.numbers
    if labels_folder is not None:
        store = LabelStore(labels_folder, split=manifest.split, manifest_digests=manifest.shard_digests)
        numbers = numbers | measure_agreement(
            loaded.model, job.crops(manifest, machine), evaluation["crop"], machine, manifest, store,
            device=job.device, precision=job.precision,
        )  # fmt: skip
    path = Path(loaded.report.where)
    return Evaluation(
        numbers | job.cost() | {"weights": path.name, "weights_sha256": sha256_of(path)}, measured.classes
    )


def evaluate_published(
    name: str, spec: dict[str, Any], machine: dict[str, Any], manifest: Manifest, source: str
) -> Evaluation:
    """Measures a published checkpoint on the validation split.

    Args:
        name: in the catalogue.
        spec: as for a run, with model (architecture and weights) and image_px.
        machine: as for a run, with weights_root.
        manifest: of the validation split; its classes are the checkpoint's, or some of them, by name.
        source: where the file can be fetched.

    Raises:
        CheckpointError: the file is missing, damaged or another one.
        DataError: as for a run.
    """
    kind, _, file = spec["model"]["weights"].partition(":")
    root = Path(machine["weights_root"])
    if kind == "file" and not (root / file).is_file():
        raise CheckpointError(
            f"published checkpoint {name}: {root / file} is missing. Fetch {source} and put it there, or set weights_root; "
            "select.published leaves it out."
        )
    check_settings(spec)
    further = Further.open(spec, machine, manifest)
    loaded = load_published(spec["model"], root, spec["image_px"], use_ema=spec["use_ema"])
    job = _Job(loaded.model, loaded.report.where, spec, machine, manifest)
    measured = job.measure(further, columns_of(manifest.classes, loaded.config.classes, loaded.report.where))
    path = Path(loaded.report.where)
    return Evaluation(
        measured.numbers | job.cost() | {"weights": path.name, "weights_sha256": sha256_of(path)}, measured.classes
    )


@dataclass(frozen=True)
class Further:
    """What is measured besides the accuracy on the validation split; opened first, so that a missing file costs no time.

    Attributes:
        real: reassessed labels by the manifest's rows; None without.
        sets: further test sets.
    """

    real: list[Any] | None
    sets: dict[str, ImageSet]

    @classmethod
    def open(cls, evaluation: dict[str, Any], machine: dict[str, Any], manifest: Manifest) -> Further:
        """Reads the labels and lists the folders that an evaluation asks for."""
        root, real = Path(machine["data_root"]), None
        if "real_labels" in evaluation:
            expected, path = evaluation["real_labels"], find_real_labels(machine["real_labels"], root)
            real = labels_of_rows(
                read_real_labels(path, expected["bytes"], expected["sha256"]), manifest, path.name
            )  # fmt: skip
        sets = {}
        for name, expected in evaluation.get("test_sets", {}).items():
            if name not in machine["test_sets"]:
                raise DataError(
                    f"test set {name}: results/machine.json has no place for it. Run snakemake, which writes it."
                )
            sets[name] = open_image_set(
                root / machine["test_sets"][name], expected["classes"], manifest.classes, title=f"test set {name}",
                images=expected["images"], maps=root,
            )  # fmt: skip
        return cls(real, sets)


def check_settings(evaluation: dict[str, Any]) -> None:
    """Refuses a spec by hand that makes no sense; the workflow's was validated when it was planned.

    Raises:
        ConfigError: crop, interpolation or use_ema is not legal.
    """
    legal: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "crop": ("a share of the shorter side, in (0, 1]", lambda crop: type(crop) in (int, float) and 0 < crop <= 1),
        "interpolation": ("bilinear or bicubic", lambda name: name in ("bilinear", "bicubic")),
        "use_ema": ("true or false", lambda chosen: isinstance(chosen, bool)),
    }
    for key, (words, is_legal) in legal.items():
        if not is_legal(evaluation[key]):
            raise ConfigError(
                f"the evaluation's spec: {key} is {evaluation[key]!r}, expected {words}. Mend it, or let snakemake write the file."
            )


class _Job:
    """One model on this machine."""

    def __init__(
        self, model: TokenModel, where: str, evaluation: dict[str, Any], machine: dict[str, Any], manifest: Manifest
    ) -> None:
        self.model, self.where, self.evaluation, self.machine, self.manifest = (
            model, where, evaluation, machine, manifest
        )  # fmt: skip
        self.device: torch.device = choose_device(machine["device"])
        self.precision: torch.dtype = choose_precision(machine["precision"], self.device)
        set_threads(machine["threads"])
        model.eval().to(self.device)

    def crops(self, manifest: Manifest, machine: dict[str, Any]) -> CenterCrops:
        """What the model sees of the photographs of a manifest."""
        crop, interpolation = self.evaluation["crop"], self.evaluation["interpolation"]
        model = self.model
        return CenterCrops(manifest, machine, model.image_px, crop, interpolation, model.mean, model.std)

    def measure(self, further: Further, columns: tuple[int, ...] | None) -> Evaluation:
        """The accuracies; `columns` is the model's class for each of the data set's, None where they are the same."""
        found = self._answers(self.manifest, self.machine, columns, further.real)
        numbers: dict[str, Any] = {
            "top1": found.top1, "top5": found.top5, "ece": found.ece, "val_images": found.images,
            "val_skipped": found.skipped,
        }  # fmt: skip
        if further.real is not None:
            numbers |= {"real_top1": found.real_top1, "real_images": found.real_images}
        if further.sets:
            numbers["test_sets"] = {
                name: self._answers(
                    chosen.manifest, chosen.machine(self.machine), _through(columns, chosen.columns)
                ).summary()
                for name, chosen in further.sets.items()
            }
        return Evaluation(numbers, found.classes)

    def _answers(
        self,
        manifest: Manifest,
        machine: dict[str, Any],
        columns: tuple[int, ...] | None,
        real: list[Any] | None = None,
    ) -> Measured:
        return measure_answers(
            self.model, self.crops(manifest, machine), manifest, machine, columns=columns, real=real, where=self.where,
            device=self.device, precision=self.precision,
        )  # fmt: skip

    def cost(self) -> dict[str, Any]:
        """Size, multiply-adds, speed and memory; leaves the model on the CPU."""
        machine, model = self.machine, self.model
        speed = measure_speed(
            model, model.image_px, machine["micro_batch"], machine["speed_seconds"],
            device=self.device, precision=self.precision,
        )  # fmt: skip
        parameters = count_parameters(model)
        model.to("cpu")
        return {"parameters_m": parameters / 1e6, "gmacs": count_multiply_adds(model, model.image_px) / 1e9} | speed


def _through(data_set: tuple[int, ...] | None, part: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The model's classes of a part of the data set's classes."""
    if data_set is None or part is None:
        return data_set if part is None else part
    return tuple(data_set[index] for index in part)
