"""The UNet of Stable Diffusion 1.x by its configuration, random weights, and a batch for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast._extras import need
from salun_fast.diffusion.denoising import guided_prediction

# runwayml/stable-diffusion-v1-5, CompVis/stable-diffusion-v1-4: unet/config.json
SD1: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
SD1_WEIGHTS, SD1_TENSORS = 859_520_964, 686
TOKENS = 77  # of a prompt, as CLIP's text encoder pads it
TIMESTEPS = 1000
GUIDANCE = 7.5
_SPREAD = 0.02  # of the random weights: keeps activations finite


@dataclass(frozen=True)
class Settings:
    """What is measured. ``dtype``: of the weights, a name in torch. ``latents``: their height and
    width. ``reference_weights``: on how many weights the reference's way is measured where all do
    not fit in memory. ``ceiling_weights``: how many ``a.add_(b)`` adds to find the bandwidth."""

    config: Mapping[str, Any]
    dtype: str = "float32"
    latents: int = 16
    batch: int = 2
    density: float = 0.5
    threads: int = 2
    reference_weights: int = 200_000_000
    ceiling_weights: int = 100_000_000


class Batch(NamedTuple):
    """noisy, noise: [b, c, h, w]. timesteps: int64 [b]. prompt, empty: embeddings [b, 77, d]."""

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor
    prompt: Tensor
    empty: Tensor


def on_meta(config: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights."""
    diffusers = need("diffusers", "The benchmark at Stable Diffusion's size", extra="diffusion")
    with torch.device("meta"):
        unet: nn.Module = diffusers.UNet2DConditionModel(**config)
    return unet


def shapes_of(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in on_meta(config).named_parameters()}


@torch.no_grad()
def random_unet(settings: Settings) -> nn.Module:
    """In eval mode: normal weights, norms of 1, biases of 0; faster than diffusers' own draw."""
    unet = on_meta(settings.config).eval()
    nn.Module.to(unet, getattr(torch, settings.dtype))  # diffusers' own warns of what is not here
    unet.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, weight in unet.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=_SPREAD, generator=generator)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
    return unet


def random_batch(settings: Settings, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, settings.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(settings.batch, *shape, generator=generator).to(dtype)

    image = (settings.config["in_channels"], settings.latents, settings.latents)
    timesteps = torch.randint(TIMESTEPS, (settings.batch,), generator=generator)
    text = (TOKENS, settings.config["cross_attention_dim"])
    return Batch(normal(*image), normal(*image), timesteps, normal(*text), normal(*text))


def guided_loss(unet: nn.Module, batch: Batch) -> Tensor:
    """MSE(ε, (1 + w)·ε(x_t, t, prompt) − w·ε(x_t, t, "")), both from one call: of two calls
    autograd would keep all gradients of one until those of the other come."""
    both: Tensor = unet(
        batch.noisy.repeat(2, 1, 1, 1),
        batch.timesteps.repeat(2),
        encoder_hidden_states=torch.cat([batch.prompt, batch.empty]),
    ).sample
    conditional, unconditional = both.chunk(2)
    return _loss(conditional, unconditional, batch.noise)


def guided_loss_of_two_calls(unet: nn.Module, batch: Batch) -> Tensor:
    """The same loss as the reference computes it."""
    conditional, unconditional = (
        unet(batch.noisy, batch.timesteps, encoder_hidden_states=text).sample
        for text in (batch.prompt, batch.empty)
    )
    return _loss(conditional, unconditional, batch.noise)


def _loss(conditional: Tensor, unconditional: Tensor, noise: Tensor) -> Tensor:
    guided = guided_prediction(conditional.float(), unconditional.float(), GUIDANCE)
    return F.mse_loss(guided, noise.float())
