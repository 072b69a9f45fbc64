"""Whether a model's tokens say what the annotator says there: on validation photographs, which neither was fitted to.

Token labels teach this directly, so they should show here before they show in the accuracy. Called by `evaluation` where the
configuration names an annotator (`evaluation.agreement`). Source: ours.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..core.errors import DataError
from ..data.manifest import Manifest
from ..engine.device import autocast
from ..engine.validation import CenterCrops
from ..labels import LabelStore, map_affine, sparse_targets
from ..labels.records import STATUS_OK
from ..models import TokenModel
from .numbered import NumberedCrops, collate


def measure_agreement(
    model: TokenModel, crops: CenterCrops, crop: float, machine: dict[str, Any], manifest: Manifest, store: LabelStore, *,
    device: torch.device, precision: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """Compares the token predictions with the annotator's maps.

    A model whose token head was never trained (`token_score_weight` 0) is asked through its class head, applied to every token.

    Args:
        model: in eval mode, on the device; its token head is changed where it was never trained.
        crops: what the model sees of each photograph.
        crop: share of the shorter side that they keep.
        machine: micro_batch, workers.
        manifest: of the split.
        store: the annotator's maps of the same photographs.
        device: of the model.
        precision: of autocast.

    Returns:
        token_agreement: % of the tokens whose best class is the annotator's there; image_agreement: the same if each token said
        what the model says of the whole photograph, which a model that sees where should beat; token_kl: mean of
        KL(annotator || token), nats; class_top1: % right of the class head alone; token_head: `token` or `class`, which head was
        asked; right: base64 of a bit a photograph, in the manifest's order, whether the model's own rule has it right: what
        paired tests of two runs need. Without the token measures where no head fits the tokens.

    Raises:
        DataError: no photograph has both pixels and a map.
    """
    head = _head_for_tokens(model)
    loader = DataLoader(
        NumberedCrops(crops), batch_size=machine["micro_batch"], num_workers=machine["workers"], collate_fn=collate
    )
    right = np.zeros(len(manifest), dtype=bool)
    sums = torch.zeros(
        4, dtype=torch.float64
    )  # tokens that agree, that would with one class for all, divergence, tokens
    counted = class_right = 0
    with torch.inference_mode():
        for rows, images in loader:
            if not len(rows):
                continue
            with autocast(device, precision):
                output = model.forward_tokens(images.to(device))
            class_logits, token_logits = output.class_logits.float().cpu(), output.token_logits.float().cpu()
            classes = torch.from_numpy(manifest.class_index[rows].astype(np.int64))
            class_right += int((class_logits.argmax(-1) == classes).sum())
            best = model.score_classes(class_logits, token_logits).argmax(-1)
            right[rows] = (best == classes).numpy()
            counted += len(rows)
            if head:
                sums += _compared(token_logits, best, output.grid, rows, crop, manifest, store)
    agreed, by_image, divergence, tokens = sums.tolist()
    if not counted or (head and not tokens):
        raise DataError(
            f"labels {store.path}: no photograph of split {manifest.split} has both pixels and a map. "
            f"See unreadable-{manifest.split}.csv there."
        )
    measured = {
        "class_top1": 100 * class_right / counted,
        "token_head": head,
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
    }
    if head:
        shares = {"token_agreement": agreed, "image_agreement": by_image}
        measured |= {name: 100 * count / tokens for name, count in shares.items()} | {"token_kl": divergence / tokens}
    return measured


def unpack_right(packed: str, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Bool (count,) of what `measure_agreement` writes as `right`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8), count=count).astype(bool)


def _head_for_tokens(model: TokenModel) -> str | None:
    """Which head classifies tokens: the token head, or in its place the class head where that was trained alone."""
    if model.token_score_weight > 0:
        return "token"
    class_head, token_head = (model.get_submodule(name) for name in (model.head_names[0], model.head_names[-1]))
    if not isinstance(class_head, nn.Linear) or not isinstance(token_head, nn.Linear):
        return None
    if class_head.weight.shape != token_head.weight.shape:
        return None
    token_head.load_state_dict(class_head.state_dict())
    return "class"


def _compared(
    token_logits: Tensor, best: Tensor, grid: tuple[int, int], rows: np.ndarray[Any, np.dtype[np.int64]], crop: float,
    manifest: Manifest, store: LabelStore,
) -> Tensor:  # fmt: skip
    """Float64 (4,), of those photographs that have a map: see `sums` above; best is the class of each whole photograph."""
    identifiers = manifest.sample_id[rows]
    usable = store.status_of(identifiers) == STATUS_OK
    if not usable.any():
        return torch.zeros(4, dtype=torch.float64)
    labels = store.get_many(identifiers[usable])
    affine = map_affine(store.view, labels.image_size, centre_affine(labels.image_size, crop))
    targets = sparse_targets(
        labels.scores, labels.classes, None, grid, store.num_classes, affine=affine, tail=labels.tail
    )
    truth, inside = targets.dense(), targets.inside
    said = token_logits[torch.from_numpy(usable)].log_softmax(-1)
    divergence = (truth * (truth.clamp_min(1e-12).log() - said)).sum(-1)
    wanted = truth.argmax(-1)
    agreed, by_image = wanted == said.argmax(-1), wanted == best[torch.from_numpy(usable), None]
    return torch.stack(
        [(agreed & inside).sum(), (by_image & inside).sum(), divergence[inside].sum(), inside.sum()]
    ).double()


def centre_affine(image_size: np.ndarray[Any, Any], crop: float) -> Tensor:
    """The map of an evaluation's centre crop: float32 (batch, 2, 3), normalised view -> normalised photograph.

    Args:
        image_size: (batch, 2), height and width in px.
        crop: share of the shorter side that is kept.
    """
    height, width = (torch.as_tensor(image_size[:, axis].astype(np.float32)) for axis in (0, 1))
    side = crop * torch.minimum(height, width)
    affine = torch.zeros(len(side), 2, 3)
    for axis, length in enumerate((width, height)):
        affine[:, axis, axis] = side / length
        affine[:, axis, 2] = (1 - side / length) / 2
    return affine
