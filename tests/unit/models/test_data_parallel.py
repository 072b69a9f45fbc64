"""DistributedDataParallel sees every gradient: the forward pass in training is the module's own call, so hooks fire."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from tokenlabel.models import MixBox, TokenModel, create_model

LVVIT = {"depth": 2, "width": 24, "heads": 2, "stem_kernels": (16,), "stem_strides": (16,)}
CASES = [("lvvit_t", LVVIT), ("timm/vit_tiny_patch16_224", {}), ("timm/test_resnet", {})]


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def double(_state: object, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """Stands where the processes' gradients are averaged; what goes through it comes out doubled."""
    future: Future[torch.Tensor] = Future()
    future.set_result(2 * bucket.buffer())
    return future


def gradients(model: TokenModel, called: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor | None]:
    model.zero_grad()
    output = called(images, MixBox((0, 1), (0, model.grid[1]), model.grid))
    (output.class_logits.square().mean() + output.token_logits.square().mean()).backward()
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize(("name", "settings"), CASES, ids=[name for name, _ in CASES])
def test_every_gradient_is_reduced(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model(name, 5, 64, **settings)
    images = torch.randn(3, 3, 64, 64)
    plain = gradients(model, model, images)
    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, double)
    for found, expected in zip(gradients(model, wrapped, images), plain, strict=True):
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found, 2 * expected)
