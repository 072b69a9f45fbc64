"""A model as the processes of a training share it: plain when alone, DDP or FSDP otherwise.

Called by the loop, which never asks which one it is. States are whole and name parameters, so a checkpoint continues in any
number of processes, sharded or not.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..models import SegmentationModel, TokenModel
from ..models.tokens import eval_mode
from .batch_norms import RunningStatistics
from .processes import Processes

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ParallelModel:
    """A model on its device, and how its processes exchange gradients.

    Every parameter that requires a gradient must get one in each step (`model_of_spec` freezes a head that no loss
    reads), so that DDP need not search the graph for others. Running statistics of batch norms equal one process's
    (`batch_norms`), so DDP broadcasts no buffers. On GPUs the norms of a segmenter's heads are synchronised instead: each sees the
    images of all processes' micro-batches (`synchronise_norms`).

    Args:
        model: on the device already, in its starting weights.
        processes: of the training.
        sharding: none (each process holds all weights) | fsdp (each holds a share of weights, gradients and optimiser state).
        compiled: torch.compile of the model's repeated blocks, each once, with the draws of the uncompiled model.

    Attributes:
        model: the plain model (weights, attributes).
        forward: what the loss calls: the same model, wrapped.
    """

    def __init__(
        self, model: nn.Module, processes: Processes, *, sharding: str = "none", compiled: bool = False
    ) -> None:
        self.model = model
        self.forward: nn.Module = model
        self._processes = processes
        self._unsharded: nn.Module | None = None
        self._accumulating = self._idle = False
        if compiled:
            for block in repeated_blocks(model) or [model]:
                block.compile(options={"fallback_random": True})
        if processes.count == 1:
            return
        if isinstance(model, SegmentationModel) and next(model.parameters()).device.type == "cuda":
            synchronise_norms(model)
        if sharding == "fsdp":
            self._unsharded = copy.deepcopy(model)  # for what needs one whole: a sharded model cannot be copied
            _shard(model, processes)
        else:
            device = next(model.parameters()).device
            shared = DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
            shared.broadcast_buffers = False  # as an argument its name differs between torch's versions
            self.forward = shared
        if statistics := RunningStatistics(model, processes):
            self._watch(statistics)

    def _watch(self, statistics: RunningStatistics) -> None:
        def before(*_: Any) -> None:
            if torch.is_grad_enabled():
                statistics.before()

        def after(*_: Any) -> None:
            if torch.is_grad_enabled():
                statistics.after(empty=self._idle, last=not self._accumulating)

        self.forward.register_forward_pre_hook(before)
        self.forward.register_forward_hook(after)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Around forward and backward of every micro-batch but the step's last: gradients stay here (DDP's no_sync)."""
        self._accumulating = True
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(False)
        no_sync = isinstance(self.forward, DistributedDataParallel)
        try:
            with self.forward.no_sync() if no_sync else contextlib.nullcontext():  # type: ignore[operator]
                yield
        finally:
            self._accumulating = False
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(True)

    def idle(self) -> None:
        """In place of forward and backward where no photograph of a micro-batch could be read: the others wait for this one."""
        if self._processes.count == 1:
            return
        assert isinstance(self.model, TokenModel | SegmentationModel)
        side, device = self.model.image_px, next(self.model.parameters()).device
        self._idle = True
        with eval_mode(self.model):  # a black image, with gradient 0 for every parameter
            self.model.training = isinstance(
                self.model, SegmentationModel
            )  # whose auxiliary head speaks in training only
            for module in self.model.modules():
                if isinstance(module, nn.SyncBatchNorm):
                    module.train()  # the others wait for its statistics; they see one black image more
            found = self.forward(torch.zeros(1, 3, side, side, device=device))
            logits = [found] if isinstance(found, torch.Tensor) else [one for one in found if one is not None]
            (torch.stack([one.sum() for one in logits]).sum() * 0.0).backward()  # type: ignore[no-untyped-call]
        self._idle = False

    def clip(self, largest_norm: float) -> torch.Tensor:
        """Scales the gradients down to a norm over all processes; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def average(self, decay: float) -> ModelEmaV3:
        """timm's moving average of the weights, sharded like the model; starts from the model's weights at construction.

        Its decay is 1 - 1/(1 + step) until it reaches `decay`: a plain mean at first. Without that a short run's average
        would still be mostly the random weights it began with (decay 0.99992 forgets them in 30,000 steps).
        """
        sharded = self._unsharded is not None
        average = ModelEmaV3(
            self._unsharded if sharded else self.model,
            decay=decay, use_warmup=True, warmup_power=1.0, foreach=not sharded,  # no foreach over shards and plain buffers
        )  # fmt: skip
        if sharded:
            _shard(average.module, self._processes)
        return average

    def states(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whole state of model and optimiser; called by every process, given to the main one."""
        model_state, optimizer_state = get_state_dict(self.model, optimizer, options=_WHOLE)
        return model_state, optimizer_state

    def load_states(
        self, optimizer: torch.optim.Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]
    ) -> None:
        """Takes over what `states` gave, in any number of processes; every process gives all of it."""
        set_state_dict(
            self.model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state,
            options=StateDictOptions(full_state_dict=True),
        )  # fmt: skip

    def whole(self, module: nn.Module) -> nn.Module:
        """A model or its average with all its weights, to be saved; called by every process, whole in the main one."""
        if self._unsharded is None:
            return module
        state = whole_state(module)
        whole = copy.deepcopy(self._unsharded)
        if state:
            whole.load_state_dict(state)
        return whole


def synchronise_norms(model: SegmentationModel) -> None:
    """Makes the batch norms of a segmenter's heads torch's SyncBatchNorm; parameters and names stay, the backbone's norms too.

    Two images a process are too few for their statistics (section 4.4: 8 GPUs with 2 images each; mmsegmentation synchronises
    as well). What one process accumulates one after the other is not brought together: with `segment_micro_batch` 16 one GPU
    sees what 8 with 2 each see.
    """
    for name, child in model.named_children():
        if child is not model.backbone:
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]


def whole_state(module: nn.Module) -> dict[str, Any]:
    """State dict of a model or average, sharded or not; called by every process, given to the main one."""
    return get_model_state_dict(module, options=_WHOLE)


def load_whole_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Takes over what `whole_state` gave; every process gives all of it."""
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost rows of at least two modules of one class: a transformer's blocks, a ResNet's stages."""
    found: list[nn.Module] = []
    for child in model.children():
        rows = list(child.children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        if len(rows) > 1 and len({type(row) for row in rows}) == 1:
            found += rows
        else:
            found += repeated_blocks(child)
    return found


def _shard(model: nn.Module, processes: Processes) -> None:
    for parameter in model.parameters():
        parameter.data = (
            parameter.data.contiguous()
        )  # fully_shard takes no other; convolutions follow the images' layout
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count,))
    for block in repeated_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
