"""How good stored labels are: each compared with its annotator run on the very crop, and with the photograph's own class.

Called by the workflow's job for every selected annotator and, for its measures, by bench/label_fidelity.py. The crops are boxes
that training draws (torchvision's RandomResizedCrop), of the part of the photograph that the maps cover. Source: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from ..core.errors import DataError, LabelError
from ..core.seeds import derived_seed
from ..data.images import UnreadableImageError, decode_image, resize
from ..data.manifest import Manifest
from ..engine.device import choose_device, choose_precision, set_threads
from ..labels import LabelStore, sparse_targets
from ..labels.attributes import read_marker
from ..labels.class_order import pooled_top
from ..labels.records import STATUS_OK, STATUS_UNREADABLE, LabelRows
from .dense import Annotator, annotator_section, build_annotator
from .folds import heads_of_rows
from .labeling import label_batch

TOKENS = (14, 14)  # of a student at 224 px
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # share of the area, width / height; as in the recipes
WHOLE = (0.0, 0.0, 1.0, 1.0)
RESAMPLES = 10_000
ENTROPY_BINS = 24
MEASURES = ("cosine", "top1_agreement", "kl", "own_class_any_cell", "own_class_pooled_top5", "cell_entropy")

Array = NDArray[np.float64]


def measure_fidelity(
    spec: dict[str, Any], machine: dict[str, Any], manifest: Manifest, store: LabelStore, images: int, crops: int, seed: int,
    annotator_folder: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures a seeded sample of labels.

    Args:
        spec: the label spec.
        machine: roots, device, precision.
        manifest: of the labeled split.
        store: the labels.
        images: how many photographs at most.
        crops: of each.
        seed: of the sample and the crops.
        annotator_folder: of an annotator that was adapted to the data set.

    Returns:
        what results/labels/NAME/fidelity-DIGEST.json says: `measures` holds for each of MEASURES mean, low and high (95 %
        bootstrap interval over photographs), `entropy` the histogram of cell entropies in nats.

    Raises:
        LabelError: no usable label, or labels of other weights.
        DataError: a photograph that was readable is so no more.
    """
    status = store.status_of(manifest.sample_id)
    order = np.random.default_rng(seed).permutation(len(manifest))
    rows = np.sort(order[status[order] == STATUS_OK][:images])
    if not len(rows):
        raise LabelError(
            f"labels {store.path}: no usable label among {len(manifest)} photographs. See its unreadable.csv."
        )
    source = manifest.open_source(machine)
    device = choose_device(machine["device"])
    precision = choose_precision(machine["precision"], device)
    set_threads(machine["threads"])
    section = annotator_section(spec["annotator"], spec["labels"]["image_px"], annotator_folder)
    annotator = build_annotator(section, Path(machine["weights_root"]))
    annotator.check_classes(manifest.classes)
    fold_of_row = heads_of_rows(manifest, annotator)
    if annotator.weights_sha256 != store.attributes.weights_sha256:
        raise LabelError(
            f"labels {store.path}: made with weights of sha256 {store.attributes.weights_sha256[:12]}..., but "
            f"{section['weights']} is {annotator.weights_sha256[:12]}... now. Restore the weights, or delete the labels "
            "and run snakemake labels."
        )
    annotator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    values = np.empty((len(rows), len(MEASURES)))
    histogram = torch.zeros(ENTROPY_BINS)
    highest = math.log(store.num_classes)
    for place, row in enumerate(rows.tolist()):
        identifier = int(manifest.sample_id[row])
        try:
            picture = covered_part(decode_image(manifest.read(source, row)), store.view)
        except UnreadableImageError as error:
            raise DataError(
                f"{manifest.path(row)}: labeled, but unreadable now ({error}). Check the disk, then run again."
            ) from None
        boxes = [random_box(picture, derived_seed("fidelity", seed, identifier, crop)) for crop in range(crops)]
        fold = None  # the head that labeled this photograph
        if fold_of_row is not None:
            fold = fold_of_row[[row] * crops].to(device)
        truth = _annotated([picture.crop(box) for box in boxes], annotator, spec, device, precision, fold)
        label = store.get_many([identifier])
        stored = _aligned(label, [normalised(box, picture) for box in boxes], TOKENS, store.num_classes)
        own = int(manifest.class_index[row])
        cells = _aligned(label, [WHOLE], store.grid, store.num_classes)
        entropy = -(cells.clamp_min(1e-12).log() * cells).sum(-1)
        histogram += torch.histc(entropy, ENTROPY_BINS, 0.0, highest)
        in_pooled = (pooled_top(label, store.num_classes) == own).any()
        values[place] = (
            *compare(stored, truth.cpu()), (label.classes == own).any(), in_pooled, entropy.mean()
        )  # fmt: skip
    middle, low, high = interval(values, lambda means: means)
    return {
        "annotator": store.annotator,
        "labels": store.path.name,
        "label_mass": "exact" if store.has_tail else "published",
        "photographs": len(rows),
        "crops": crops,
        "seed": seed,
        "labeled": len(store),
        "unreadable": int((status == STATUS_UNREADABLE).sum()),
        "jobs": summary_of_jobs(store),
        "compute_precision": str(precision).removeprefix("torch."),
        "measures": {
            name: {"mean": float(middle[column]), "low": float(low[column]), "high": float(high[column])}
            for column, name in enumerate(MEASURES)
        },
        "entropy": {"highest": highest, "share": (histogram / histogram.sum()).tolist()},
    }


def summary_of_jobs(store: LabelStore) -> dict[str, Any]:
    """What the shards' markers say of the jobs that made them.

    Returns:
        shards, hours of all jobs, bytes a photograph; and where the markers have them (labels that were made here) the median
        images_per_s and the devices.
    """
    markers = [read_marker(path) for path in sorted(store.path.glob(f"{store.attributes.split}-*.done"))]
    facts = [marker["job"] for marker in markers if "job" in marker]
    return {
        "shards": len(markers),
        "hours": round(sum(marker.get("seconds", 0.0) for marker in markers) / 3600, 4),
        "bytes_per_image": round(sum(marker["size_bytes"] for marker in markers) / max(1, len(store))),
        "images_per_s": float(np.median([fact["images_per_s"] for fact in facts])) if facts else None,
        "devices": " ".join(sorted({fact["device"] for fact in facts})),
    }


def covered_part(picture: Image.Image, view: str) -> Image.Image:
    """The part of a photograph that a score map covers: all of it, or its largest centred square."""
    if view == "squash":
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def random_box(picture: Image.Image, seed: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in px of a crop as in training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(picture, list(SCALE), list(RATIO))
    return left, top, left + width, top + height


def normalised(box: tuple[int, int, int, int], picture: Image.Image) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 over the whole picture."""
    width, height = picture.size
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def compare(label: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """Means over tokens of cosine, agreement of the best class, and KL(truth || label) in nats; both (..., classes)."""
    cosine = torch.nn.functional.cosine_similarity(label, truth, dim=-1)
    agreement = (label.argmax(-1) == truth.argmax(-1)).float()
    divergence = (truth * (truth.clamp_min(1e-12).log() - label.clamp_min(1e-12).log())).sum(-1)
    return float(cosine.mean()), float(agreement.mean()), float(divergence.mean())


def interval(per_photograph: Array, statistic: Callable[[Array], Any]) -> tuple[Any, Any, Any]:
    """A statistic of the means over photographs, and the ends of its 95 % bootstrap interval.

    Args:
        per_photograph: (photographs, columns).
        statistic: from column means (..., columns) to (..., whatever).
    """
    rng = np.random.default_rng(0)
    count = len(per_photograph)
    resampled = np.stack([per_photograph[rng.integers(0, count, count)].mean(0) for _ in range(RESAMPLES)])
    low, high = np.percentile(statistic(resampled), [2.5, 97.5], axis=0)
    return statistic(per_photograph.mean(0)), low, high


def _annotated(
    pictures: list[Image.Image], annotator: Annotator, spec: dict[str, Any], device: torch.device, precision: torch.dtype,
    fold: Tensor | None,
) -> Tensor:  # fmt: skip
    """(crops, tokens, classes): all that the annotator says of each crop, its cells' probabilities brought to the tokens."""
    image_px, filter_name = spec["labels"]["image_px"], annotator.preprocessing.interpolation
    squares = [np.array(resize(picture, image_px, image_px, filter_name)) for picture in pictures]
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(device)
    everything = spec["labels"] | {"k": annotator.num_classes, "tail": False, "score_step": 0}
    maps = label_batch(annotator, images, spec | {"labels": everything}, precision, fold)
    maps.check_finite(["a random crop"] * len(pictures), [True] * len(pictures))
    nothing_left = torch.full(maps.scores.shape[:3], -math.inf, device=device)
    return sparse_targets(
        maps.scores, maps.classes, torch.tensor([WHOLE] * len(pictures), device=device), TOKENS, annotator.num_classes,
        tail=nothing_left,
    ).dense()  # fmt: skip


def _aligned(label: LabelRows, boxes: list[Any], grid: tuple[int, int], num_classes: int) -> Tensor:
    """(boxes, tokens, classes): one photograph's stored label, as training would read it for each box."""
    many = label.take(np.zeros(len(boxes), dtype=np.int64))
    return sparse_targets(many.scores, many.classes, torch.tensor(boxes), grid, num_classes, tail=many.tail).dense()
