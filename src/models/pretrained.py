"""Where pretrained weights come from: a file, a folder, an installed package, or the model hub; and what they are called.

Called for annotators and for students that start pretrained. The weights' SHA-256 goes into every shard, and is checked
where the configuration states one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import CheckpointError, ConfigError
from ..core.files import sha256_of
from ..core.weights_files import FOLDER_FILES, WEIGHTS_KEY, find_weights_file
from .weights import Checkpoint, checkpoint_file, read_checkpoint, read_json_metadata, read_state_dict

FOLD_HEADS = "folds.safetensors"  # beside the checkpoint of an annotator that was adapted in folds
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Weights:
    """A state dict in timm's names, the digest of what it was read from, and whether it is a moving average (EMA)."""

    state: dict[str, torch.Tensor]
    sha256: str
    origin: str
    averaged: bool = False


def load_pretrained(source: dict[str, Any], weights_root: Path, *, averaged: bool = False) -> Weights:
    """Loads pretrained weights.

    Args:
        source: a spec's section with architecture, weights, weights_sha256 and weights_naming.
        weights_root: folder of `file:` weights.
        averaged: take the averaged weights (EMA) of a file or folder that holds both.

    Raises:
        CheckpointError: missing, damaged, or not the stated digest.
    """
    path = find_weights_file(source["weights"], weights_root)
    if averaged and path is not None and source["weights"].startswith("folder:"):
        path = checkpoint_file(path.parent)
    if path is None:
        path = download_hub_file(source["architecture"])
    digest = sha256_of(path)
    if source["weights_sha256"] not in (None, digest):
        raise CheckpointError(
            f"{path}: sha256 {digest[:16]}..., the configuration states {source['weights_sha256'][:16]}.... "
            "Replace the file or correct weights_sha256."
        )
    found = read_checkpoint(path) if averaged else Checkpoint(str(path), read_state_dict(path))
    state = found.state
    if source["weights_naming"] == "efficientnet_pytorch":
        state = rename_efficientnet_pytorch(state)
    return Weights(state=state, sha256=digest, origin=str(path), averaged=found.averaged)


def hub_file(architecture: str) -> tuple[str, str | None, str]:
    """Repository, revision (None: the newest) and file name of an architecture's weights, by timm's own records.

    Raises:
        CheckpointError: timm knows no hub weights for it.
    """
    import timm

    try:
        config = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError as error:  # no such name or tag
        raise CheckpointError(f"annotator {architecture}: {error} Correct the annotator's architecture.") from None
    if not config.hf_hub_id:
        place = (
            f"Fetch {config.url} elsewhere, put it under weights_root"
            if config.url
            else "Put a file under weights_root"
        )
        raise CheckpointError(
            f"{architecture}: timm knows no hub weights for it. {place} and set {WEIGHTS_KEY} to file:NAME."
        )
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None, config.hf_hub_filename or FOLDER_FILES[0]


def cached_hub_file(architecture: str) -> Path | None:
    """The weights file where the hub's cache on this machine has it."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision, file_name = hub_file(architecture)
    found = try_to_load_from_cache(repository, file_name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def download_hub_file(architecture: str) -> Path:
    """Fetches timm's file for an architecture into the hub's cache; a file that is there needs no network."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if cached := cached_hub_file(architecture):
        return cached
    repository, revision, file_name = hub_file(architecture)
    try:
        # one question without retries: the download itself asks six times, 24 s without a network
        get_hf_file_metadata(hf_hub_url(repository, file_name, revision=revision), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(repository, file_name, revision=revision))
    except Exception as error:  # noqa: BLE001 - the transport's errors belong to another package in each hub version
        raise CheckpointError(
            f"{architecture}: the model hub gives no weights ({type(error).__name__}). Fetch {file_name} of "
            f"{repository} elsewhere, put it under weights_root and set {WEIGHTS_KEY} to file:NAME."
        ) from None


def is_efficientnet_pytorch(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict has the names of the package efficientnet_pytorch, which no other network here uses."""
    return {"_conv_stem.weight", "_conv_head.weight", "_fc.weight"} <= state.keys()


def rename_efficientnet_pytorch(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames a state dict of the package efficientnet_pytorch to timm's names.

    Blocks count through in one and by stage in the other; a block without expansion has no `_expand_conv`.
    """
    blocks = sorted({int(match[1]) for name in state if (match := re.match(r"_blocks\.(\d+)\.", name))})
    stage_of = _stages(state, blocks)
    renamed = {}
    for name, value in state.items():
        if match := re.match(r"_blocks\.(\d+)\.(.*)", name):
            index, rest = int(match[1]), match[2]
            layer, _, parameter = rest.partition(".")
            expands = f"_blocks.{index}._expand_conv.weight" in state
            stage, position = stage_of[index]
            renamed[f"blocks.{stage}.{position}.{_block_layer(layer, expands)}.{parameter}"] = value
        else:
            layer, _, parameter = name.partition(".")
            renamed[f"{_TOP_LAYERS[layer]}.{parameter}"] = value
    return renamed


_TOP_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def _block_layer(layer: str, expands: bool) -> str:
    if expands:
        return {
            "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3",
        }[layer]  # fmt: skip
    return {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}[layer]


def _stages(state: dict[str, torch.Tensor], blocks: list[int]) -> dict[int, tuple[int, int]]:
    """Block -> (stage, position): a stage is a run of blocks with the same number of output channels and kernel.

    The seven stages of EfficientNet: a new one begins where output channels change.
    """
    places: dict[int, tuple[int, int]] = {}
    stage, position, channels = -1, 0, -1
    for block in blocks:
        out_channels = state[f"_blocks.{block}._project_conv.weight"].shape[0]
        if out_channels != channels:
            stage, position, channels = stage + 1, 0, out_channels
        places[block] = (stage, position)
        position += 1
    return places


def create_backbone(
    architecture: str, num_classes: int, image_px: int | None, state: dict[str, torch.Tensor] | None, origin: str = ""
) -> nn.Module:
    """Makes timm's network; weights go through timm's own loading, which knows old names and resizes position embeddings.

    Args:
        architecture: timm name with or without weights tag.
        num_classes: of the classifier, and of the weights.
        image_px: side of the images; matters to networks with a fixed input only.
        state: weights; None for random ones.
        origin: names the weights in errors.

    Raises:
        CheckpointError: the weights are another network's.
        ConfigError: the network takes no images of this size.
    """
    import timm

    options: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(architecture)
    if image_px is not None and config is not None and config.fixed_input_size and config.input_size[-1] != image_px:
        options["img_size"] = image_px
    if state is not None:
        options["pretrained_cfg_overlay"] = {"state_dict": state, "num_classes": num_classes, "label_offset": 0}
    try:
        backbone: nn.Module = timm.create_model(
            architecture, pretrained=state is not None, num_classes=num_classes, **options
        )
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        detail = " ".join(lines[1:3])[:300] if len(lines) > 1 else lines[0]
        raise CheckpointError(
            f"{origin}: not the weights of {architecture} with {num_classes} classes: {detail} Check the annotator's "
            "architecture, num_classes and weights_naming."
        ) from None
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"annotator {architecture}: timm refuses images of {image_px} px ({' '.join(str(error).split())}). Set labels.image_px "
            "to a size that it takes."
        ) from None
    return backbone


def read_folds(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor, dict[int, int]]:
    """Heads by fold of an adapted annotator, weight (folds, classes, features) and bias (folds, classes); sample id -> fold.

    Args:
        checkpoint: the annotator's; the heads lie beside it, and their digest in its metadata.

    Raises:
        CheckpointError: missing, or not the heads that belong to it.
    """
    path = checkpoint.with_name(FOLD_HEADS)
    expected = read_json_metadata(checkpoint, "fold_heads_sha256")
    if not path.is_file() or expected != sha256_of(path):
        raise CheckpointError(
            f"{path}: missing, or not the heads that belong to {checkpoint.name}. Delete adapted.done beside it "
            "and run snakemake again."
        )
    state = read_state_dict(path)
    identifiers = state["sample_id"].numpy().view("uint64").tolist()
    return state["weight"], state["bias"], dict(zip(identifiers, state["fold"].tolist(), strict=True))
