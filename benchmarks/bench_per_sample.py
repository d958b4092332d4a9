"""Saliency of score="per_sample": the sum over samples of |gradient|, in one backward."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import Case, Peer, Size
from salun_fast import Saliency, models

MICRO_BATCH = 16  # as many per-sample gradients as 24 GB hold beside the rest
IN_PARTS = f"in micro-batches of {MICRO_BATCH} samples"
Loss = Callable[..., Tensor]  # of a callable model and a batch: the mean over its samples


@dataclass(frozen=True)
class Workload:
    """data: tensors whose first dimension is the batch."""

    model: nn.Module
    data: tuple[Tensor, ...]
    loss: Loss

    def on(self, device: torch.device) -> Workload:
        """In evaluation mode, in which no sample depends on another."""
        data = tuple(each.to(device) for each in self.data)
        return Workload(self.model.eval().to(device), data, self.loss)

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def chunks(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(each.split(MICRO_BATCH) for each in self.data), strict=True))


def resnet18(small: bool) -> Workload:
    batch, width = (4, 8) if small else (64, 64)
    model = models.build("resnet18", 10, width=width)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    return Workload(model, (images, labels), lambda model, x, y: F.cross_entropy(model(x), y))


def unet(small: bool) -> Workload:
    from diffusers import UNet2DModel

    channels, batch, side = ((8, 16), 2, 8) if small else ((64, 128), 16, 32)
    model = UNet2DModel(
        sample_size=side, block_out_channels=channels, norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    images, noise = torch.randn(batch, 3, side, side), torch.randn(batch, 3, side, side)
    times = torch.randint(1000, (batch,))
    return Workload(
        model, (images, times, noise), lambda model, x, t, e: F.mse_loss(model(x, t).sample, e)
    )


def vit_block(small: bool) -> Workload:
    width, tokens, batch = (16, 4, 4) if small else (384, 197, 16)
    return Workload(
        VitBlock(width, heads=width // 8 if small else 6),
        (torch.randn(batch, tokens, width),),
        lambda model, x: model(x).square().mean(),
    )


class VitBlock(nn.Module):
    """A block of a vision transformer (ViT-S/16 by its sizes): tokens [b, t, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


WORKLOADS = {"ResNet-18, batch 64": resnet18, "UNet2DModel, batch 16": unet,
             "ViT block, batch 16": vit_block}  # fmt: skip
FULL = 10**6  # weights; a size below that has been scaled down


def case(size: Size) -> Case:
    torch.manual_seed(0)
    work = WORKLOADS[size.name](size.numel < FULL).on(size.device)
    target = 3 if size.name.startswith("ResNet-18") else None
    return Case(
        "per-sample saliency",
        ours(work),
        "one forward and backward; scores of every weight",
        [
            Peer("torch.func vmap(grad)", by_torch_func(work), IN_PARTS, target),
            opacus(work, target),
            Peer("plain backward", plain(work), "gradients alone", target=1 / 1.6, memory=1.25),
        ],
        sum(param.numel() for param in work.model.parameters()),
    )  # fmt: skip


def ours(work: Workload) -> Callable[[], Saliency]:
    model = work.copy()
    saliency = Saliency(model, score="per_sample")

    def call() -> Saliency:
        with saliency.measure():
            work.loss(model, *work.data).backward()
        return saliency

    return call


def plain(work: Workload) -> Callable[[], None]:
    model = work.copy()

    def call() -> None:
        model.zero_grad()
        work.loss(model, *work.data).backward()

    return call


def by_torch_func(work: Workload) -> Callable[[], dict[str, Tensor]]:
    model = work.copy()
    params = {name: param.detach() for name, param in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss_of_one(params: dict[str, Tensor], *sample: Tensor) -> Tensor:
        def bound(*inputs: Tensor) -> Any:
            return functional_call(model, (params, buffers), inputs)

        return work.loss(bound, *(each.unsqueeze(0) for each in sample))

    per_sample = vmap(grad(loss_of_one), in_dims=(None, *(0 for _ in work.data)))

    def call() -> dict[str, Tensor]:
        scores = {name: torch.zeros_like(param) for name, param in params.items()}
        for chunk in work.chunks():
            with sdpa_kernel(SDPBackend.MATH):  # vmap would take the others sample by sample
                found = per_sample(params, *chunk)
            for name, grads in found.items():
                scores[name] += grads.abs().sum(0)
        return scores

    return call


def opacus(work: Workload, target: float | None = None) -> Peer:
    name = "Opacus grad samples"
    if importlib.util.find_spec("opacus") is None:
        return Peer(name, lambda: None, IN_PARTS, missing="opacus is not installed")
    norms = any(isinstance(module, nn.BatchNorm2d) for module in work.model.modules())
    left_out = "; leaves out BatchNorm's weights, for which it has no rule" if norms else ""
    return Peer(name, by_opacus(work), IN_PARTS + left_out, target)


def by_opacus(work: Workload) -> Callable[[], dict[str, Tensor]]:
    from opacus import GradSampleModule

    model = work.copy().train()  # it records in training mode alone
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
        elif isinstance(module, nn.Conv2d):  # Opacus takes every image's rows for contiguous
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    wrapped = GradSampleModule(model, loss_reduction="mean", strict=False)

    def call() -> dict[str, Tensor]:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        scores = {name: torch.zeros_like(param) for name, param in named}
        for chunk in work.chunks():
            work.loss(wrapped, *chunk).backward()
            for name, param in named:
                scores[name] += param.grad_sample.abs().sum(0)
                param.grad, param.grad_sample = None, None
        return scores

    return call


SIZES = [Size(FULL, 1, density=None, name=name) for name in WORKLOADS]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # Opacus'
@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name.split(",")[0])
def test_per_sample(claim, size):
    claim(case, size, rounds=3)
