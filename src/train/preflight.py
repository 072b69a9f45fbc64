"""What is looked at and said before the first step: mistakes that otherwise show after days, as an accuracy of 0.

Called by the job once per process. Stops on too few labels and on labels that are numbered otherwise than the folders; prints what
the run really does: augmentation, batch, learning rate. Source: ours, for what cost users of the released code most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.config import Recipe
from ..core.errors import LabelError
from ..core.log import logger
from ..core.recipes import scaled_rate, with_batch
from ..data.manifest import Manifest
from ..labels import LabelStore
from ..labels.class_order import (
    above_chance,
    fits_better,
    hits,
    other_orders,
    permuted_classes,
    pooled_top,
)
from ..labels.records import STATUS_OK, STATUS_PENDING, STATUS_UNREADABLE

SAMPLE = 5_000  # photographs whose labels are compared with their folders; some five of each of a thousand classes
_NAMED = 3  # confusions in a message


@dataclass(frozen=True)
class LabelCoverage:
    """How many photographs of the training set are labeled, could not be read in stage 1, or have no label at all."""

    labeled: int
    unreadable: int
    missing: int

    @property
    def share(self) -> float:
        """Of the readable photographs, those with a label; 1 where none is readable."""
        return self.labeled / max(self.labeled + self.missing, 1)

    @classmethod
    def of(cls, store: LabelStore, manifest: Manifest) -> LabelCoverage:
        """Counts a manifest's photographs in a store."""
        status = store.status_of(manifest.sample_id, absent=STATUS_PENDING)
        labeled, unreadable, missing = (
            int((status == kind).sum()) for kind in (STATUS_OK, STATUS_UNREADABLE, STATUS_PENDING)
        )
        return cls(labeled, unreadable, missing)


def check_before_training(
    *, spec: Mapping[str, Any], machine: Mapping[str, Any], recipe: Recipe, manifest: Manifest, store: LabelStore | None,
    batches_size: int, processes_count: int, classes: Sequence[str], parameters: int | None = None,
) -> None:  # fmt: skip
    """Stops a training that could not succeed, and prints what it is going to do.

    Args:
        spec: of the run.
        machine: its settings.
        recipe: of the run.
        manifest: of the training split.
        store: the labels, None where the run learns from none.
        batches_size: photographs of a step, which a small data set makes smaller than the recipe's.
        processes_count: that share a step.
        classes: folder name of each class.
        parameters: of the model, for the checkpoint's size.

    Raises:
        LabelError: labels of other classes, too few labels, or labels in another class order.
    """
    photographs, said = len(manifest), []
    if store is not None:
        coverage = LabelCoverage.of(store, manifest)
        _check_coverage(store, coverage, machine["min_label_coverage"])
        photographs = coverage.labeled
        left_out = "".join(
            f", {count:,} {what} left out"
            for count, what in ((coverage.unreadable, "unreadable"), (coverage.missing, "unlabeled"))
            if count
        )
        said.append(("labels", f"{store.annotator}, for {_percent(coverage.share)} of the photographs{left_out}"))
        said.append(("class order", check_classes(store, manifest, classes)))
    steps = photographs // batches_size
    lines = [
        ("photographs", f"{photographs:,} of {len(np.unique(manifest.class_index)):,} classes"),
        *said,
        ("supervision", _supervision(recipe)),
        ("augmentation", describe_augmentation(recipe)),
        ("batch", _batch(batches_size, machine["micro_batch"], processes_count) + f"; {steps:,} steps an epoch"),
        ("learning rate", describe_learning_rate(recipe, batches_size)),
        ("schedule", _schedule(with_batch(recipe, batches_size), steps)),
        ("weights", _weights(recipe, parameters)),
    ]
    logger.info("before the first step of %s at %d px:", spec["model"]["architecture"], spec["image_px"])
    for name, words in lines:
        logger.info("  %-13s  %s", name, words)
    if recipe.learning_rate_batch is None and batches_size != recipe.batch_size:
        logger.warning(
            "the batch is %d, the recipe's is %d, and the learning rate stays %g (learning_rate_batch is null). Set "
            "learning_rate_batch: %d in the recipe to have it follow.",
            batches_size, recipe.batch_size, recipe.learning_rate, recipe.batch_size,
        )  # fmt: skip


def check_classes(store: LabelStore, manifest: Manifest, classes: Sequence[str]) -> str:
    """Compares a seeded sample of labels with the folders; returns what was found in words.

    A weak annotator passes: only labels that fit another order significantly better, or that tell no more than chance of many
    photographs, stop the training.

    Raises:
        LabelError: labels of other classes or in another order.
    """
    if store.num_classes != len(classes):
        raise LabelError(
            f"labels {store.path}: of {store.num_classes:,} classes, the data set has {len(classes):,}. Adapt the annotator to the "
            "data set's classes (tokenlabel annotate adapt), or give the labels that were made for it."
        )
    usable = np.flatnonzero(store.status_of(manifest.sample_id, absent=STATUS_PENDING) == STATUS_OK)
    rows = np.sort(np.random.default_rng(0).permutation(usable)[:SAMPLE])
    own = manifest.class_index[rows].astype(np.int64)
    top = pooled_top(store.get_many(manifest.sample_id[rows]), store.num_classes)
    share, first = hits(top, own), float((top[:, 0] == own).mean())
    found = f"the folder's class is the map's best for {_percent(first)} and among its best {top.shape[1]} for {_percent(share)}"
    found += f" of {len(rows):,} photographs"
    if wrong := _disorder(top, own, classes, store.num_classes):
        raise LabelError(
            f"labels {store.path} are not in the class order of the folders: {wrong} ({found}). Make the labels with the data "
            "set's own class_map, or correct dataset.class_map; `tokenlabel annotate check LABELS --classes-only` tells more."
        )
    known = above_chance(top, own, store.num_classes)
    if known is False:
        raise LabelError(
            f"labels {store.path} know no more of the folders' classes than chance: {found}. Most likely another class order, "
            "other weights or another preprocessing; `tokenlabel annotate check LABELS --classes-only` looks closer."
        )
    if known is None:
        logger.warning(
            "labels %s: too few photographs to tell whether their class order is right; %s", store.path, found
        )
    return found


def _disorder(top: np.ndarray[Any, Any], own: np.ndarray[Any, Any], classes: Sequence[str], num_classes: int) -> str:
    """What is wrong with the order, with examples; empty where nothing is certain."""
    names = [
        name for name, number_of in other_orders(classes, num_classes).items() if fits_better(top, own, number_of[own])
    ]
    confused = permuted_classes(top, own)
    examples = ", ".join(
        f"folder {classes[found.own]} is labeled class {found.answer} in {found.count} of {found.photographs} photographs"
        for found in confused[:_NAMED]
    )
    more = f" and {len(confused) - _NAMED} more" if len(confused) > _NAMED else ""
    return "; ".join(filter(None, ["the labels fit " + names[0] if names else "", examples + more]))


def describe_augmentation(recipe: Recipe) -> str:
    """The augmentation in one line; RandAugment that is off says so."""
    magnitude = f"{recipe.randaugment_magnitude:g}/{recipe.randaugment_std:g}"
    count, operations = recipe.randaugment_count, len(recipe.randaugment_operations)
    if count and operations:
        words = [f"RandAugment {magnitude} ({count} of {operations} operations)"]
    else:
        words = [f"RandAugment OFF (magnitude {magnitude} has no effect: randaugment_count is {count})"]
    words.append(
        f"erasing {recipe.erasing_probability:g} ({recipe.erasing_mode})"
        if recipe.erasing_probability
        else "no erasing"
    )
    words.append(f"flip {recipe.flip_probability:g}")
    words.append(f"crop {recipe.crop_scale[0]:g} to {recipe.crop_scale[1]:g} of the area")
    if recipe.mix == "none" or recipe.mix_probability == 0:
        return ", ".join([*words, "no mixing"])
    often = "" if recipe.mix_probability == 1 else f" of {_percent(recipe.mix_probability)} of the batches"
    return ", ".join([*words, f"mix {recipe.mix}{often}"])


def describe_learning_rate(recipe: Recipe, batch_size: int) -> str:
    """The highest rate and the rule that it comes from."""
    if recipe.learning_rate_batch is None:
        return f"{recipe.learning_rate:g}, whatever the batch"
    words = f"{scaled_rate(recipe, batch_size):.4g} = {recipe.learning_rate:g} x {batch_size} / {recipe.learning_rate_batch}"
    if batch_size != recipe.batch_size:
        words += f" (follows the batch; the recipe's {recipe.batch_size} would have {scaled_rate(recipe, recipe.batch_size):.4g})"
    return words


def _check_coverage(store: LabelStore, coverage: LabelCoverage, smallest: float) -> None:
    if coverage.share >= smallest:
        return
    allowed = math.floor(100 * coverage.share) / 100
    raise LabelError(
        f"labels {store.path} cover {_percent(coverage.share)} of the training set: {coverage.missing:,} of "
        f"{coverage.labeled + coverage.missing:,} readable photographs have none, machine.min_label_coverage is {smallest:g}. "
        f"Run snakemake labels, or set min_label_coverage to {allowed:g} to train without these photographs."
    )


def _supervision(recipe: Recipe) -> str:
    smoothing = f", smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else ""
    if recipe.supervision == "hard":
        return f"hard: the folder's class{smoothing}"
    if recipe.supervision == "relabel":
        return f"relabel: one label an image, pooled from its map{smoothing}"
    target = {"map": "the pooled map", "label": "the folder's class", "blend": "pooled map and folder's class"}
    share = "" if recipe.participation == 1 else f" on {_percent(recipe.participation)} of the tokens"
    return f"token: class loss ({target[recipe.class_target]}) + {recipe.token_weight:g} x token loss{share}{smoothing}"


def _batch(batch_size: int, micro_batch: int, processes: int) -> str:
    micro_batch = min(micro_batch, batch_size)
    count = -(-batch_size // micro_batch)
    if batch_size % (micro_batch * processes):
        return f"{batch_size} in {count} micro-batches of at most {micro_batch}, processes: {processes}"
    accumulated = count // processes
    return f"{batch_size} = {micro_batch} (micro-batch) x {accumulated} (accumulated) x {processes} (processes)"


def _schedule(recipe: Recipe, steps: int) -> str:
    words = f"{recipe.epochs} epochs, cosine to {recipe.min_learning_rate:g}"
    if recipe.warmup_epochs:
        words += f", warm-up from {recipe.warmup_learning_rate:g} in {recipe.warmup_epochs} epochs"
        words += f" ({recipe.warmup_epochs * steps:,} steps)"
    if recipe.cooldown_epochs:
        words += f", {recipe.cooldown_epochs} epochs of cool-down after them"
    return words


def _weights(recipe: Recipe, parameters: int | None) -> str:
    words = f"decay {recipe.weight_decay:g}, average {f'EMA {recipe.ema_decay:g}' if recipe.ema_decay else 'none'}, gradient clip "
    words += f"{recipe.clip_norm:g}" if recipe.clip_norm else "none"
    if parameters is not None:
        copies = 4 if recipe.ema_decay else 3  # weights, AdamW's two moments, the average; float32
        words += f"; {parameters / 1e6:.1f} M, a checkpoint {4 * copies * parameters / 1e6:,.0f} MB (two are kept)"
    return words


def _percent(share: float) -> str:
    """Rounded down, so that only all is 100 %."""
    return f"{math.floor(1000 * share + 1e-9) / 10:g} %"
