"""What makes classes of pixels out of feature maps: the heads FCN and UPerNet, and the rescaling of a plain transformer's maps.

Called by `segmentation`; knows no backbone. Norms are nn.BatchNorm2d, which torch's SyncBatchNorm replaces for several
processes. Source: Long et al. 2015; Xiao et al. 2018; sizes of the released configurations for mmsegmentation, which give
the paper's parameters. torchvision's FPN does not fit: it upsamples by nearest neighbour and knows no pyramid pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..core.segment_config import Head

CLASSIFIER_STD = 0.01  # of the last layer's first weights: all classes start nearly equal


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm also of one cell, behind pooling or of a crop of one token: of one image that is one value, without variance.

    Such a batch is normalised with the running statistics and leaves them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, rows, cols) -> the same shape."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class Rescaling(nn.Sequential):
    """One level of a plain transformer at another resolution.

    A transposed convolution whose cells do not overlap (x4, x2) or max-pooling (x0.5), then a 1x1 convolution; each with batch
    norm and ReLU.

    Args:
        source: channels in.
        channels: channels out.
        scale: 4, 2, 1 or 0.5.
    """

    def __init__(self, source: int, channels: int, scale: float) -> None:
        layers: list[nn.Module] = []
        if scale > 1:
            side = int(scale)
            layers = [nn.ConvTranspose2d(source, source, side, side, bias=False), nn.BatchNorm2d(source), nn.ReLU()]
        elif scale < 1:
            layers = [nn.MaxPool2d(round(1 / scale), ceil_mode=True)]
        super().__init__(*layers, convolution(source, channels, 1))


class FCNHead(nn.Module):
    """Convolutions on one map, then a class for each cell.

    Args:
        source: channels of the map.
        num_classes: channels out.
        channels: of the convolutions.
        convolutions: how many of 3x3, at least 1.
        concatenate_input: whether a last one sees the map beside what the others made of it.
        dropout: of whole channels, before the classes.
    """

    def __init__(
        self,
        source: int,
        num_classes: int,
        *,
        channels: int,
        convolutions: int,
        concatenate_input: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [source, *[channels] * (convolutions - 1)]
        self.convolutions = nn.Sequential(*(convolution(width, channels, 3) for width in widths))
        self.joint = convolution(source + channels, channels, 3) if concatenate_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps of the levels, of which the last is read -> (batch, classes, rows, cols) of that map."""
        found = self.convolutions(levels[-1])
        if self.joint is not None:
            found = self.joint(torch.cat((levels[-1], found), dim=1))
        out: Tensor = self.classifier(self.dropout(found))
        return out


class PyramidPooling(nn.Module):
    """A map joined with its own averages over 1, 4, 9, 36 regions (or as `pool_sizes` says), which see the whole image.

    Args:
        source: channels in.
        channels: of each average and out.
        pool_sizes: regions along a side.
    """

    def __init__(self, source: int, channels: int, pool_sizes: Sequence[int]) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), convolution(source, channels, 1)) for size in pool_sizes
        )
        self.joint = convolution(source + len(pool_sizes) * channels, channels, 3)

    def forward(self, level: Tensor) -> Tensor:
        """(batch, source, rows, cols) -> (batch, channels, rows, cols)."""
        pooled = [resize(pool(level), level) for pool in self.pools]
        out: Tensor = self.joint(torch.cat((level, *pooled), dim=1))
        return out


class UPerNetHead(nn.Module):
    """Pyramid pooling on the last level, joined from there down with the finer ones, all read together at the finest.

    Args:
        sources: channels of the levels, finest first.
        num_classes: channels out.
        channels: of every convolution.
        pool_sizes: see `PyramidPooling`.
        dropout: of whole channels, before the classes.
    """

    def __init__(
        self, sources: Sequence[int], num_classes: int, *, channels: int, pool_sizes: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.pooling = PyramidPooling(sources[-1], channels, pool_sizes)
        self.laterals = nn.ModuleList(convolution(source, channels, 1) for source in sources[:-1])
        self.smoothings = nn.ModuleList(convolution(channels, channels, 3) for _ in sources[:-1])
        self.joint = convolution(len(sources) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps of the levels, finest first -> (batch, classes, rows, cols) of the finest."""
        coarse = self.pooling(levels[-1])
        read = [coarse]
        for level, lateral, smoothing in zip(
            reversed(levels[:-1]), reversed(self.laterals), reversed(self.smoothings), strict=True
        ):
            found = lateral(level)
            coarse = found + resize(coarse, found)
            read.append(smoothing(coarse))
        finest = read[-1]
        out: Tensor = self.classifier(
            self.dropout(self.joint(torch.cat([resize(found, finest) for found in read], dim=1)))
        )
        return out


def read_head(head: Mapping[str, Any] | Head) -> Head:
    """The description of a head as typed data.

    Args:
        head: as config.yaml's `segmentation.heads` and a spec's `head` have it.

    Raises:
        ConfigError: a key or value that is not legal, with its place.
    """
    try:
        return Head.model_validate(head)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["head", *map(str, first["loc"])])
        found = "" if first["type"] == "missing" or isinstance(first["input"], Mapping) else f" is {first['input']!r}"
        raise ConfigError(f"{where}{found}: {first['msg'].removeprefix('Value error, ')}") from None


def levels_read(head: Head) -> list[int]:
    """Numbers of the levels, from 0, that head or auxiliary head reads: FCN the last one only."""
    last = len(head.levels.scales) - 1
    read = set(range(last + 1)) if head.kind == "upernet" else {last}
    return sorted(read if head.auxiliary is None else read | {head.auxiliary.level})


def create_head(head: Head, sources: Sequence[int], num_classes: int) -> FCNHead | UPerNetHead:
    """The head of a description, in random weights.

    Args:
        head: the description.
        sources: channels of the rescaled levels.
        num_classes: channels out.
    """
    if head.kind == "upernet":
        assert head.pool_sizes is not None
        return UPerNetHead(
            sources, num_classes, channels=head.channels, pool_sizes=head.pool_sizes, dropout=head.dropout
        )
    assert head.convolutions is not None
    return FCNHead(
        sources[-1], num_classes, channels=head.channels, convolutions=head.convolutions,
        concatenate_input=bool(head.concatenate_input), dropout=head.dropout,
    )  # fmt: skip


def create_auxiliary(head: Head, sources: Sequence[int], num_classes: int) -> FCNHead | None:
    """The second, small head of a description, which gives a loss in training only; None where it has none."""
    small = head.auxiliary
    if small is None:
        return None
    return FCNHead(
        sources[small.level], num_classes, channels=small.channels, convolutions=small.convolutions,
        concatenate_input=False, dropout=small.dropout,
    )  # fmt: skip


def convolution(source: int, channels: int, kernel: int) -> nn.Module:
    """A convolution that keeps rows and columns, with norm and ReLU: torchvision's, in Kaiming's initialisation."""
    from torchvision.ops import Conv2dNormActivation  # here, for the base install reads models without it

    layer: nn.Module = Conv2dNormActivation(source, channels, kernel, norm_layer=PooledBatchNorm)
    nn.init.kaiming_normal_(layer.get_parameter("0.weight"), mode="fan_out", nonlinearity="relu")
    return layer


def make_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """The last layer: small weights and no bias at first, so that a training starts at the loss ln(classes)."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=CLASSIFIER_STD)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def resize(found: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the rows and columns of another map."""
    if found.shape[-2:] == like.shape[-2:]:
        return found
    return F.interpolate(found, size=like.shape[-2:], mode="bilinear", align_corners=False)
