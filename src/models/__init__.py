"""Models that classify images and every token: LV-ViT, T2T-ViT, timm backbones; MixToken; weights."""

import importlib.util

from .checkpoints import LoadReport, load_weights, read_metadata, read_state_dict, save_weights
from .complexity import count_multiply_adds, count_parameters
from .registry import create_model, model_names
from .tokens import MixBox, TokenModel, TokenOutput, draw_mix_box, partner_order

if importlib.util.find_spec("timm") is not None:
    from . import timm_registry as timm_registry  # its import registers our models with timm

__all__ = [
    "LoadReport",
    "MixBox",
    "TokenModel",
    "TokenOutput",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "draw_mix_box",
    "load_weights",
    "model_names",
    "partner_order",
    "read_metadata",
    "read_state_dict",
    "save_weights",
]
