"""Models that classify images and every token: LV-ViT, T2T-ViT, timm backbones; MixToken; segmenters on them; weights."""

import importlib.util

from .checkpoints import LoadReport, load_checkpoint
from .complexity import count_multiply_adds, count_parameters
from .model_config import ModelConfig, describe_model, read_model_config, settings_of_spec, write_model_config
from .registry import create_model, model_names
from .segmentation import (
    LoadedSegmenter,
    SegmentationModel,
    SegmentationOutput,
    create_segmenter,
    load_segmenter,
    save_segmenter,
)
from .tokens import MixBox, TokenModel, TokenOutput, draw_mix_box, partner_order
from .trained import LoadedModel, load_model, load_published
from .weights import read_metadata, read_state_dict, save_weights

if importlib.util.find_spec("timm") is not None:
    from . import timm_registry as timm_registry  # its import registers our models with timm

__all__ = [
    "LoadReport",
    "LoadedModel",
    "LoadedSegmenter",
    "MixBox",
    "ModelConfig",
    "SegmentationModel",
    "SegmentationOutput",
    "TokenModel",
    "TokenOutput",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "create_segmenter",
    "describe_model",
    "draw_mix_box",
    "load_checkpoint",
    "load_model",
    "load_published",
    "load_segmenter",
    "model_names",
    "partner_order",
    "read_metadata",
    "read_model_config",
    "read_state_dict",
    "save_segmenter",
    "save_weights",
    "settings_of_spec",
    "write_model_config",
]
