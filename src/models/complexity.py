"""Counts parameters and multiply-adds; called by evaluation and the plan. Silent, and leaves the model as it was.

Source: fvcore, which counts one multiply-add as one operation; it skips fused attention, which is added here.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .tokens import eval_mode


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values, both heads included; buffers (batch statistics, fixed positions) are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, image_px: int) -> int:
    """Multiply-adds of one image in eval mode, attention included.

    Args:
        model: on any device; one forward is computed, for a model on the meta device with a blank copy on the CPU
            (tracing convolutions on the meta device fails in PyTorch 2.14).
        image_px: side of the image.
    """
    if next(model.parameters()).is_meta:
        model = copy.deepcopy(model).to_empty(device="cpu")
        for value in model.state_dict().values():
            value.zero_()  # whatever lay in that memory may be denormal and slow
    anchor = next(model.parameters())
    image = torch.zeros(1, 3, image_px, image_px, device=anchor.device, dtype=anchor.dtype)
    with eval_mode(model), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis  # its import warns too

        analysis = FlopCountAnalysis(model, image)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _count_attention)
        return int(analysis.total())


def _count_attention(inputs: Sequence[Any], _outputs: Sequence[Any]) -> int:
    """Query times key and weights times value: (..., tokens, keys) x (channels of the key + channels of the value)."""
    query, key, value = (operand.type().sizes() for operand in inputs[:3])
    return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))
