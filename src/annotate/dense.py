"""An annotator: a timm classifier whose head is applied to every cell of its last feature map, or to every patch token.

A cell goes through what the classifier does behind its pooling, and then through its linear layer. Three kinds are told apart by
measuring, on a real photograph at the start of every job, so that a head which does something else is refused before hours of work:

- `linear`: pooling and one linear layer commute (most CNNs, Swin): the map's mean equals the classifier's own logits.
- `pooled`: a norm or a convolution lies between them (ConvNeXt, MobileNetV3, ViTs with average pooling): the head applied to the
  mean cell equals them, the mean of the map does not.
- `class token`: ViT, DeiT, CaiT: the head applied to the class token equals them; patch tokens were never trained to be classified.

VOLO brings a token head of its own, which is used. Source: section 4.1 of the paper and ReLabel (Yun et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError
from ..data.timm_names import check_timm_names
from ..models.pretrained import create_backbone, load_pretrained, read_folds
from ..models.weights import read_json_metadata

CHECK_TOLERANCE = 1e-3  # of the logits' spread; float32 on a CPU gives 1e-6, bfloat16 is checked in float32
ADAPTED_CHECKPOINT = "annotator.safetensors"  # in an adapted annotator's folder
KINDS = ("linear", "pooled", "class token")


@dataclass(frozen=True)
class Preprocessing:
    """How the annotator wants its pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class Annotator(nn.Module):
    """A pretrained classifier with a dense head.

    Attributes:
        num_classes: K.
        classifier: the linear layer, float32 (K, channels).
        preprocessing: mean, std and interpolation of the weights.
        weights_sha256: digest of the file that the weights came from.

    Raises:
        CheckpointError: a classifier that cannot be applied to single cells, with the reason.
    """

    def __init__(
        self, backbone: nn.Module, preprocessing: Preprocessing, weights_sha256: str, architecture: str
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.preprocessing = preprocessing
        self.weights_sha256 = weights_sha256
        self.architecture = architecture
        if getattr(backbone, "attn_pool", None) is not None:
            raise self._unfit("it pools by attention, which weighs tokens against each other")
        self.gives_tokens = False  # set by the first forward pass
        self.own_token_head = getattr(backbone, "aux_head", None) is not None
        self.classifier = self._linear_layer()
        self.num_classes = self.classifier.out_features
        self.fold_of_sample: dict[int, int] = {}  # sample id -> the head that has not seen it
        self.classes: tuple[str, ...] | None = None  # of an adapted annotator
        self.fold_weight: Tensor | None
        self.fold_bias: Tensor | None
        self.register_buffer("fold_weight", None)
        self.register_buffer("fold_bias", None)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuses an adapted annotator whose classes are not the data set's, in name or order.

        Raises:
            CheckpointError: the classes were renamed, added or removed since it was adapted.
        """
        if self.classes is not None and self.classes != tuple(classes):
            changed = sorted(set(self.classes) ^ set(classes))
            raise CheckpointError(
                f"annotator {self.architecture}: adapted to {len(self.classes)} classes, the data set has {len(classes)} others "
                f"({', '.join(changed[:5]) or 'in another order'}). Delete its adapted.done and run snakemake to adapt it anew."
            )

    @property
    def folds(self) -> int:
        """Heads that each have not seen a part of the training photographs; 0: the one head labels all."""
        return 0 if self.fold_weight is None else len(self.fold_weight)

    def _unfit(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"annotator {self.architecture}: {reason}; its head cannot be applied to single cells. Choose another annotator; any "
            "timm classifier that pools by averaging or reads a class token will do."
        )

    def _linear_layer(self) -> nn.Linear:
        """The classifier as one linear layer; a 1x1 convolution and DeiT's two heads, which are averaged, are such."""
        found = self.backbone.aux_head if self.own_token_head else self.backbone.get_classifier()
        heads = list(found) if isinstance(found, (tuple, list, nn.ModuleList)) else [found]
        weights, biases = [], []
        for head in heads:
            if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1):
                weight, bias = head.weight.flatten(1), head.bias
            elif isinstance(head, nn.Linear):
                weight, bias = head.weight, head.bias
            else:
                raise self._unfit(f"its classifier is a {type(head).__name__}, not one linear layer")
            weights.append(weight)
            biases.append(torch.zeros_like(weight[:, 0]) if bias is None else bias)
        if len({weight.shape for weight in weights}) > 1:
            raise self._unfit(f"it has {len(heads)} heads of different widths")
        layer = nn.Linear(weights[0].shape[1], weights[0].shape[0], device=weights[0].device)
        layer.weight = nn.Parameter(torch.stack([w.detach() for w in weights]).mean(0), requires_grad=False)
        layer.bias = nn.Parameter(torch.stack([b.detach() for b in biases]).mean(0), requires_grad=False)
        return layer

    def forward(self, images: Tensor, fold: Tensor | None = None) -> Tensor:
        """Logits of every cell.

        Args:
            images: float (batch, 3, height, width), normalised.
            fold: int64 (batch,), which of several heads labels each photograph; of annotators that were adapted in folds.

        Returns:
            (batch, rows, cols, classes).
        """
        cells, _ = self.cells(images)
        return self.classify(self.head_input(cells), fold)

    def classify(self, features: Tensor, fold: Tensor | None = None) -> Tensor:
        """Linear layer; features (batch, rows, cols, channels); fold as in `forward`."""
        if fold is not None and self.fold_weight is not None and self.fold_bias is not None:
            weight, bias = self.fold_weight[fold], self.fold_bias[fold]  # (batch, classes, channels), (batch, classes)
            by_fold: Tensor = features.flatten(1, 2) @ weight.to(features.dtype).transpose(1, 2) + bias[:, None]
            return by_fold.reshape(*features.shape[:3], -1)
        logits: Tensor = self.classifier(features)
        return logits

    @torch.inference_mode()
    def pooled(self, images: Tensor) -> Tensor:
        """What the classifier's linear layer gets of whole photographs, (batch, width)."""
        cells, prefix = self.cells(images)
        by_class_token = prefix is not None and getattr(self.backbone, "global_pool", None) == "token"
        cell = prefix[:, 0] if prefix is not None and by_class_token else cells.mean((1, 2))
        return self.head_input(cell[:, None, None])[:, 0, 0]

    def cells(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cells of the last feature map (batch, rows, cols, channels), and the prefix tokens before them, if any."""
        features = self.backbone.forward_features(images)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise self._unfit(f"its features are {shape}, neither a map nor tokens")
        self.gives_tokens = features.ndim == 3
        if features.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return (features if channels_last else features.permute(0, 2, 3, 1)), None
        length = features.shape[1]
        declared = getattr(self.backbone, "num_prefix_tokens", None)
        for prefix in (0, 1, 2) if declared is None else (declared,):
            side = math.isqrt(max(0, length - prefix))
            if side and side * side == length - prefix:
                cells = features[:, prefix:].reshape(len(features), side, side, -1)
                return cells, features[:, :prefix] if prefix else None
        raise self._unfit(f"its {length} tokens are no square grid")

    def head_input(self, cells: Tensor) -> Tensor:
        """What the linear layer gets where a cell is all that the classifier sees.

        Args:
            cells: (batch, rows, cols, channels).

        Returns:
            (batch, rows, cols, width).
        """
        if self.own_token_head:
            return cells
        batch, rows, cols, channels = cells.shape
        single = cells.reshape(-1, channels)
        if self.gives_tokens:
            # the same token in every place: whichever the pooling takes, it is this one
            places = max(1, getattr(self.backbone, "num_prefix_tokens", None) or 0) + 1
            single = single[:, None].expand(-1, places, -1)
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            single = single[:, None, None]
        else:
            single = single[:, :, None, None]
        features: Tensor = self.backbone.forward_head(single, pre_logits=True)
        return features.reshape(batch, rows, cols, -1)

    @torch.inference_mode()
    def check(self, images: Tensor) -> tuple[str, float]:
        """Compares the dense head with the classifier's own logits.

        Args:
            images: float (batch, 3, height, width), normalised.

        Returns:
            the kind of head, one of KINDS, and the largest difference relative to the logits' spread.

        Raises:
            CheckpointError: it is above 1e-3 for every kind.
        """
        own = self.backbone(images)
        own = torch.stack(list(own)).mean(0) if isinstance(own, (tuple, list)) else own
        cells, prefix = self.cells(images)
        dense = self.classify(self.head_input(cells)).flatten(1, 2)
        if self.own_token_head and prefix is not None:
            tried = {"class token": self.backbone.head(prefix[:, 0]) + 0.5 * dense.amax(1)}
        else:
            tried = {"linear": dense.mean(1), "pooled": self._head_of(cells.mean((1, 2)))}
            if prefix is not None:
                tried["class token"] = self._class_token_logits(prefix)
        spread = own.std().clamp_min(1e-6)
        differences = {kind: float(((found - own).abs().amax() / spread).item()) for kind, found in tried.items()}
        for kind, difference in differences.items():
            if difference <= CHECK_TOLERANCE:
                return kind, difference
        smallest = min(differences.values()) if own.isfinite().all() else math.nan
        pooling = getattr(self.backbone, "global_pool", None)
        raise CheckpointError(
            f"annotator {self.architecture}: its dense head differs from its own logits by {smallest:.2g} of their spread (allowed "
            f"1e-3); between features and classifier it does more than averaging, a norm and one linear layer (pooling {pooling}). "
            "Choose another annotator."
        )

    def _class_token_logits(self, prefix: Tensor) -> Tensor:
        heads = self.backbone.get_classifier()
        if not isinstance(heads, (tuple, list)):
            return self._head_of(prefix[:, 0])
        logits = [head(prefix[:, place]) for place, head in enumerate(heads)]  # DeiT: a head for each of two tokens
        return torch.stack(logits).mean(0)

    def _head_of(self, cell: Tensor) -> Tensor:
        return self.classify(self.head_input(cell[:, None, None]))[:, 0, 0]


def build_annotator(spec: dict[str, Any], weights_root: Path) -> Annotator:
    """Builds an annotator with its weights, in eval mode on the CPU.

    Args:
        spec: the label spec's annotator section; `image_px` in it sets the input of networks that need to know it.
        weights_root: folder of `file:` weights.

    Raises:
        ConfigError: timm knows no such architecture, or it has another number of classes.
        CheckpointError: weights missing or not its own, or a head that cannot be applied to cells.
    """
    architecture = spec["architecture"]
    check_timm_names([architecture.split(".", 1)[0]])
    weights = load_pretrained(spec, weights_root)
    backbone = create_backbone(architecture, spec["num_classes"], spec.get("image_px"), weights.state, weights.origin)
    annotator = Annotator(backbone.eval(), preprocessing_of(backbone), weights.sha256, architecture)
    if annotator.num_classes != spec["num_classes"]:
        raise ConfigError(f"annotator {architecture}: {annotator.num_classes} classes, expected {spec['num_classes']}.")
    if (spec.get("adaptation") or {}).get("adaptation", {}).get("folds"):
        annotator.fold_weight, annotator.fold_bias, annotator.fold_of_sample = read_folds(Path(weights.origin))
    if weights.origin.endswith(f"/{ADAPTED_CHECKPOINT}"):
        names = read_json_metadata(weights.origin, "classes")
        annotator.classes = tuple(names) if names else None
    return annotator


def annotator_section(section: dict[str, Any], image_px: int, folder: Path | None) -> dict[str, Any]:
    """What `build_annotator` takes.

    Args:
        section: a spec's section annotator.
        image_px: side of its images.
        folder: of the adapted annotator's checkpoint; None where it is not adapted.
    """
    if folder is None:
        return section | {"image_px": image_px}
    checkpoint = f"file:{folder.resolve() / ADAPTED_CHECKPOINT}"
    return section | {
        "image_px": image_px, "weights": checkpoint, "weights_naming": "timm", "weights_sha256": None
    }  # fmt: skip


def preprocessing_of(backbone: nn.Module) -> Preprocessing:
    """Mean, std and interpolation from timm's own record of the weights."""
    config: Any = backbone.pretrained_cfg
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
