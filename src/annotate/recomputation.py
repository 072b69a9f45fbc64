"""Whether stored labels are what their annotator gives: a sample is computed anew and compared, and causes are tried where not.

Called by `tokenlabel annotate check`. Guarantees the shard job's own arithmetic (`labeling.label_batch`), in float32 whatever the
job's precision was, under what the shards say of themselves. Writes nothing. Source: ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import DataError, LabelError
from ..data.images import UnreadableImageError
from ..data.manifest import Manifest
from ..data.pixels import read_view
from ..labels import LabelStore
from ..labels.attributes import VIEWS, read_marker, shard_file_name
from ..labels.records import LabelRows
from .check import sample_rows
from .dense import Annotator, Preprocessing
from .folds import heads_of_rows
from .labeling import label_batch

# largest and rms difference of a photograph's stored logits, in standard deviations of all its logits, that arithmetic may make
# beside rounding to float16. Measured on 12 photographs, Lite0 at 160 px and Lite1 at 240, worst photograph: float32 0 and 0;
# float16 0.20 and 0.033, TF32 0.18 and 0.030; bfloat16 0.78 and 0.19 (bilinear for bicubic: median rms 0.29, weights + 1 %: 0.024)
TOLERANCES = {"float32": (0.02, 0.004), "float16": (0.40, 0.06), "bfloat16": (1.6, 0.25)}
_TRIED = 6  # photographs on which causes are tried
_EXPLAINED = 0.75  # share of them that must be within tolerance under a cause
_MANY = 0.5  # share of differing photographs above which a common cause is looked for
_BATCH = 8
_NORMALISATIONS = {
    "mean and std of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean and std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "pixels from 0 to 1, no mean": ((0.0,) * 3, (1.0,) * 3),
    "mean and std of CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Recipe:
    """What labels are computed with.

    Attributes:
        image_px, view, flip, scales: as in the label spec.
        score_step: of the stored scores.
        preprocessing: mean, std, interpolation.
        channels: order of the colour channels.
    """

    image_px: int
    view: str
    flip: bool
    scales: tuple[float, ...]
    score_step: float
    preprocessing: Preprocessing
    channels: tuple[int, int, int] = (0, 1, 2)


@dataclass(frozen=True)
class Recomputation:
    """What the check found.

    Attributes:
        images: photographs computed anew.
        differing: paths of those out of tolerance.
        largest, rms: of each photograph's difference, the median over photographs, in standard deviations of its logits.
        tolerance: for both, without the rounding to float16.
        top1: share of cells with the same best class.
        verdict: one line.
        matches: whether the labels are the annotator's.
    """

    images: int
    differing: tuple[str, ...]
    largest: float
    rms: float
    tolerance: tuple[float, float]
    top1: float
    verdict: str
    matches: bool


@dataclass(frozen=True)
class _Differences:
    largest: NDArray[np.float64]
    rms: NDArray[np.float64]
    within: NDArray[np.bool_]
    top1: float


class _Sample:
    """Photographs of a store, their stored labels, and their annotator."""

    def __init__(
        self, store: LabelStore, manifest: Manifest, machine: dict[str, Any], annotator: Annotator, rows: NDArray[np.int64]
    ) -> None:  # fmt: skip
        self.store, self.manifest, self.annotator, self.rows = store, manifest, annotator, rows
        self.labels = store.get_many(manifest.sample_id[rows])
        self.fold_of_row = heads_of_rows(manifest, annotator)
        source = manifest.open_source(machine)
        self.encoded = [manifest.read(source, row) for row in rows.tolist()]
        self.tolerance = _tolerance(store, annotator.classifier.weight.device)

    def logits(self, recipe: Recipe, count: int) -> Iterator[torch.Tensor]:
        """Logits of each of the first `count` photographs, float32 (rows, cols, classes)."""
        classes, grid = self.annotator.num_classes, list(self.store.grid)
        settings = {
            "image_px": recipe.image_px, "k": classes, "tail": False, "score_step": 0, "flip": recipe.flip,
            "scales": list(recipe.scales),
        }  # fmt: skip
        spec = {"labels": settings, "annotator": {"grid": grid}}
        device = self.annotator.classifier.weight.device
        own, self.annotator.preprocessing = self.annotator.preprocessing, recipe.preprocessing
        try:
            for start in range(0, count, _BATCH):
                places = range(start, min(start + _BATCH, count))
                images = torch.stack([self._pixels(place, recipe) for place in places]).to(device)
                fold = None
                if self.fold_of_row is not None:
                    fold = self.fold_of_row[self.rows[places.start : places.stop]].to(device)
                maps = label_batch(self.annotator, images, spec, torch.float32, fold)
                paths = [self.path(place) for place in places]
                maps.check_finite(paths, [True] * len(paths))
                scores = maps.scores.float()
                yield from torch.zeros_like(scores).scatter(-1, maps.classes, scores).cpu()
        finally:
            self.annotator.preprocessing = own

    def _pixels(self, place: int, recipe: Recipe) -> torch.Tensor:
        try:
            pixels, _ = read_view(self.encoded[place], recipe.image_px, recipe.view, recipe.preprocessing.interpolation)
        except UnreadableImageError as error:
            raise DataError(
                f"{self.path(place)}: has a label but cannot be read now ({error}). Restore it, or run snakemake labels."
            ) from None
        return torch.as_tensor(pixels)[list(recipe.channels)]

    def path(self, place: int) -> str:
        return self.manifest.path(int(self.rows[place]))

    def compare(self, recipe: Recipe, labels: LabelRows) -> _Differences:
        """Compares labels of the first photographs with what a recipe gives."""
        found = [
            _difference(logits, labels, place, recipe.score_step, self.tolerance)
            for place, logits in enumerate(self.logits(recipe, len(labels)))
        ]
        largest, rms, within, top1 = (np.array(column) for column in zip(*found, strict=True))
        return _Differences(largest, rms, within, float(top1.mean()))


def recompute(
    store: LabelStore, manifest: Manifest, machine: dict[str, Any], annotator: Annotator, images: int, seed: int
) -> Recomputation:
    """Computes a seeded sample of labels anew and compares.

    Args:
        store: the labels.
        manifest: of the same split.
        machine: where the photographs are.
        annotator: on its device, in eval mode.
        images: how many photographs at most.
        seed: of the sample.

    Raises:
        LabelError: no usable label, or labels of an annotator with other classes or another grid.
        DataError: photographs that are missing, changed or unreadable.
    """
    said = store.attributes
    if said.num_classes != annotator.num_classes:
        raise LabelError(
            f"labels {store.path}: {said.num_classes} classes, the annotator has {annotator.num_classes}. Give the annotator "
            "that the labels were made with."
        )
    sample = _Sample(store, manifest, machine, annotator, sample_rows(store, manifest, images, seed))
    recipe = _recipe_of(store, annotator.preprocessing)
    found = sample.compare(recipe, sample.labels)
    differing = np.flatnonzero(~found.within)
    other_facts = _other_facts(store, annotator)
    if not len(differing):
        verdict = f"does not match: {other_facts[0]}, though the numbers agree" if other_facts else (
            "matches: the labels are what the annotator gives"
        )  # fmt: skip
    elif len(differing) <= _MANY * len(sample.rows):
        verdict = (
            f"does not match: {len(differing)} of {len(sample.rows)} labels differ, the first that of "
            f"{sample.path(int(differing[0]))}: most likely damaged or changed labels, or changed photographs"
        )
    else:
        verdict = f"does not match: most likely {_cause(sample, recipe, other_facts, found.top1)}"
    return Recomputation(
        images=len(sample.rows),
        differing=tuple(sample.path(int(place)) for place in differing),
        largest=float(np.median(found.largest)),
        rms=float(np.median(found.rms)),
        tolerance=sample.tolerance,
        top1=found.top1,
        verdict=verdict,
        matches=not len(differing) and not other_facts,
    )


def _tolerance(store: LabelStore, device: torch.device) -> tuple[float, float]:
    """By the job's precision, the widest where it is unknown; GPUs round float32 to TF32, which has float16's mantissa."""
    said = store.attributes
    precision = said.libraries.get("compute_precision", "unknown")
    if precision == "float32":
        try:
            marker = read_marker(store.path / shard_file_name(said.split, said.shard, said.total))
        except LabelError:
            marker = {}
        if {device.type, marker.get("job", {}).get("device", "unknown")} != {"cpu"}:
            precision = "float16"
    return TOLERANCES.get(precision, TOLERANCES["bfloat16"])


def _recipe_of(store: LabelStore, own: Preprocessing) -> Recipe:
    """What the shards say; where they are silent (labels from elsewhere), the annotator's own."""
    said = store.attributes
    stated = said.preprocessing
    preprocessing = Preprocessing(
        tuple(stated.get("mean") or own.mean), tuple(stated.get("std") or own.std),
        stated.get("interpolation") or own.interpolation,
    )  # fmt: skip
    scales = tuple(stated.get("scales") or (1.0,))
    return Recipe(said.image_px, said.view, bool(stated.get("flip")), scales, said.score_step, preprocessing)


def _other_facts(store: LabelStore, annotator: Annotator) -> list[str]:
    """What the shards say of themselves that is not so of the annotator."""
    said, own = store.attributes, annotator.preprocessing
    facts = []
    digest = said.weights_sha256
    if len(digest) == len(annotator.weights_sha256) and digest != annotator.weights_sha256:
        facts.append(f"other weights (sha256 {digest[:16]}... in the shards, {annotator.weights_sha256[:16]}... here)")
    for name in ("mean", "std", "interpolation"):
        stated, wanted = said.preprocessing.get(name), getattr(own, name)
        if stated and (stated if name == "interpolation" else tuple(stated)) != wanted:
            facts.append(f"other preprocessing ({name} {stated} in the shards, the annotator's own is {wanted})")
    return facts


def _difference(
    logits: torch.Tensor, labels: LabelRows, place: int, step: float, tolerance: tuple[float, float]
) -> tuple[float, float, bool, float]:
    """Of one photograph: largest and rms difference, whether both are within tolerance, share of cells with the same best."""
    stored = torch.from_numpy(labels.scores[place].astype(np.float32))
    classes = torch.from_numpy(labels.classes[place].astype(np.int64))
    if int(classes.max()) >= logits.shape[-1] or bool((classes.sort(-1).values.diff(dim=-1) == 0).any()):
        return np.inf, np.inf, False, 0.0
    anew = logits.gather(-1, classes)
    rest = logits.scatter(-1, classes, float("-inf"))
    # a class that was left out may stand above the last stored one by as much as scores may differ
    missed = (rest.amax(-1, keepdim=True) - stored[..., -1:]).clamp_min(0)
    parts = [stored - anew, missed if logits.shape[-1] > stored.shape[-1] else torch.zeros_like(missed)]
    if labels.tail is not None:
        parts.append((torch.from_numpy(labels.tail[place].astype(np.float32)) - rest.logsumexp(-1))[..., None])
    difference = torch.cat(parts, -1).abs()
    # stored and anew are rounded by half a spacing each, the stored by half a step too
    rounding = float(np.spacing(np.float16(max(stored.abs().max(), anew.abs().max())))) + step / 2
    spread = float(logits.std())
    largest, rms = float(difference.max()), float((stored - anew).square().mean().sqrt())
    within = largest <= rounding + tolerance[0] * spread and rms <= rounding / 2 + tolerance[1] * spread
    return largest / spread, rms / spread, within, float((classes[..., 0] == logits.argmax(-1)).float().mean())


def _cause(sample: _Sample, recipe: Recipe, other_facts: list[str], top1: float) -> str:
    """The first cause under which most of a few photographs are within tolerance."""
    few = sample.labels.take(np.arange(min(_TRIED, len(sample.labels))))

    def explains(other: Recipe, labels: LabelRows) -> bool:
        try:
            return bool(sample.compare(other, labels).within.mean() >= _EXPLAINED)
        except DataError:  # another grid at that size
            return False

    for name, labels in _other_maps(few, sample.annotator.num_classes):
        if explains(recipe, labels):
            return name
    for name, other in _other_recipes(recipe, sample.annotator.preprocessing):
        if explains(other, few):
            return name
    if (consistent := _consistent_classes(sample, recipe)) is not None and consistent > top1 + 0.25:
        return f"a permuted class order: {consistent:.0%} of cells have one consistent other best class"
    if other_facts:
        return other_facts[0]
    if top1 > 0.5:
        return (
            f"other weights of this architecture or slightly other preprocessing: {top1:.0%} of cells keep their best class; "
            "no known view, size or filter explains it"
        )
    return f"another annotator or other weights: {top1:.0%} of cells keep their best class"


def _other_maps(labels: LabelRows, num_classes: int) -> Iterator[tuple[str, LabelRows]]:
    """The stored maps as they would be had they been laid out or numbered rightly."""
    rows, cols = labels.scores.shape[1:3]

    def turned(turn: Any) -> LabelRows:
        tail = None if labels.tail is None else np.ascontiguousarray(turn(labels.tail))
        scores, classes = (np.ascontiguousarray(turn(part)) for part in (labels.scores, labels.classes))
        return dataclasses.replace(labels, scores=scores, classes=classes, tail=tail)

    yield "maps mirrored left to right", turned(lambda part: np.flip(part, 2))
    yield "maps mirrored top to bottom", turned(lambda part: np.flip(part, 1))
    yield "maps turned by 180 degrees", turned(lambda part: np.flip(part, (1, 2)))
    if rows == cols:
        yield "maps transposed (rows and columns exchanged)", turned(lambda part: np.swapaxes(part, 1, 2))
        yield "maps turned by 90 degrees", turned(lambda part: np.rot90(part, 1, (1, 2)))
        yield "maps turned by 270 degrees", turned(lambda part: np.rot90(part, 3, (1, 2)))
    numbers = np.arange(num_classes)
    for name, right in {
        "every class one too high": numbers - 1,
        "every class one too low": numbers + 1,
        "reversed class order": numbers[::-1],
    }.items():
        yield name, dataclasses.replace(labels, classes=(right % num_classes)[labels.classes])


def _other_recipes(recipe: Recipe, own: Preprocessing) -> Iterator[tuple[str, Recipe]]:
    """Recipes that labels are mistakenly made with."""
    stated = recipe.preprocessing
    for filter_name in ("bilinear", "bicubic", "lanczos", "box", "nearest"):
        if filter_name != stated.interpolation:
            name = f"interpolation {filter_name} instead of {stated.interpolation}"
            yield name, replace(recipe, preprocessing=replace(stated, interpolation=filter_name))
    for view in VIEWS:
        if view != recipe.view:
            yield f"view {view} instead of {recipe.view}", replace(recipe, view=view)
    for name, (mean, std) in {**_NORMALISATIONS, "the annotator's own mean and std": (own.mean, own.std)}.items():
        if (mean, std) != (stated.mean, stated.std):
            instead = f"other preprocessing: {name} instead of mean {stated.mean}, std {stated.std}"
            yield instead, replace(recipe, preprocessing=replace(stated, mean=mean, std=std))
    yield "colour channels in the order blue, green, red", replace(recipe, channels=(2, 1, 0))
    yield "flip averaging " + ("missing" if recipe.flip else "added"), replace(recipe, flip=not recipe.flip)
    for pixels in (-32, -24, -16, -8, 8, 16, 24, 32):
        if (image_px := recipe.image_px + pixels) > 0:
            yield f"image_px {image_px} instead of {recipe.image_px}", replace(recipe, image_px=image_px)


def _consistent_classes(sample: _Sample, recipe: Recipe) -> float | None:
    """Share of cells whose stored best class is the commonest one that cells of the same recomputed best class have.

    None where too few classes occur more than once to tell.
    """
    anew = torch.stack([logits.argmax(-1) for logits in sample.logits(recipe, len(sample.labels))]).numpy().reshape(-1)
    stored = sample.labels.classes[..., 0].reshape(-1).astype(np.int64)
    agreeing = compared = 0
    for best in np.unique(anew):
        answers = stored[anew == best]
        if len(answers) > 4:
            agreeing += int(np.bincount(answers).max())
            compared += len(answers)
    return agreeing / compared if compared else None
