"""An annotator: a timm classifier whose linear classifier is applied to every cell of the last feature map.

Pooling and a linear layer commute, so the map's spatial mean must equal the classifier's own logits; that is checked on a
real photograph at the start of every job, because it fails where a head does more than pool and classify.
Source: section 4.1 of the paper and the score maps of ReLabel (Yun et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import CheckpointError, ConfigError
from ..data.timm_names import check_timm_names
from ..models.pretrained import load_pretrained

CHECK_TOLERANCE = 1e-3  # of the logits' spread; float32 on a CPU gives 1e-6, bfloat16 is checked in float32


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
        preprocessing: mean, std and interpolation of the weights.
        weights_sha256: digest of the file that the weights came from.
    """

    def __init__(
        self, backbone: nn.Module, preprocessing: Preprocessing, weights_sha256: str, architecture: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.weights_sha256 = weights_sha256
        self.architecture = architecture
        classifier = backbone.get_classifier()  # type: ignore[operator]
        if not isinstance(classifier, nn.Linear):
            raise CheckpointError(
                f"annotator {architecture}: its classifier is a {type(classifier).__name__}, not one linear layer; "
                "it cannot be applied to every cell. Choose a convolutional classifier."
            )
        self.classifier = classifier
        self.num_classes = classifier.out_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of every cell.

        Args:
            images: float (batch, 3, height, width), normalised.

        Returns:
            (batch, rows, cols, classes).
        """
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        if features.ndim != 4:
            raise CheckpointError(
                f"annotator {self.architecture}: forward_features gives {features.ndim} axes, expected a map "
                "(batch, channels, rows, cols). Transformers are not annotators yet; choose a convolutional classifier."
            )
        logits: torch.Tensor = self.classifier(features.permute(0, 2, 3, 1))
        return logits

    @torch.inference_mode()
    def check(self, images: torch.Tensor) -> float:
        """Compares the map's spatial mean with the classifier's own logits.

        Returns:
            largest difference relative to the logits' spread.

        Raises:
            CheckpointError: it is above 1e-3: the head does more than pool and classify.
        """
        dense = self(images).flatten(1, 2).mean(1)
        own = self.backbone(images)
        difference = float(((dense - own).abs().amax() / own.std().clamp_min(1e-6)).item())
        if not difference <= CHECK_TOLERANCE:
            raise CheckpointError(
                f"annotator {self.architecture}: the mean of its dense map differs from its own logits by {difference:.2g} "
                "of their spread (allowed 1e-3); its head is not pooling and one linear layer. Choose another annotator."
            )
        return difference


def build_annotator(spec: dict[str, Any], weights_root: Path) -> Annotator:
    """Builds an annotator with its weights, in eval mode on the CPU.

    Args:
        spec: the label spec's annotator section.
        weights_root: folder of `file:` weights.

    Raises:
        ConfigError: timm knows no such architecture, or it has another number of classes.
        CheckpointError: weights missing or not its own.
    """
    import timm

    architecture = spec["architecture"]
    check_timm_names([architecture.split(".", 1)[0]])
    weights = load_pretrained(spec, weights_root)
    backbone = timm.create_model(architecture, pretrained=False, num_classes=spec["num_classes"])
    missing, unexpected = _load(backbone, weights.state, architecture)
    if missing or unexpected:
        raise CheckpointError(
            f"{weights.origin}: not the weights of {architecture}: missing {missing[:5]}, unexpected {unexpected[:5]}. "
            "Check the annotator's architecture and weights_naming."
        )
    config = backbone.pretrained_cfg
    preprocessing = Preprocessing(tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
    annotator = Annotator(backbone.eval(), preprocessing, weights.sha256, architecture)
    if annotator.num_classes != spec["num_classes"]:
        raise ConfigError(f"annotator {architecture}: {annotator.num_classes} classes, expected {spec['num_classes']}.")
    return annotator


def _load(backbone: nn.Module, state: dict[str, torch.Tensor], architecture: str) -> tuple[list[str], list[str]]:
    try:
        result = backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"annotator {architecture}: the weights have other shapes: {first}") from None
    # counters of batch norms are bookkeeping; older checkpoints lack them
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    return missing, list(result.unexpected_keys)
