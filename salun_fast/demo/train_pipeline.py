"""Trains the small text-to-image pipeline: the VAE first, then UNet and text encoder on latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast._extras import need
from salun_fast.demo.captioned import STYLES, CaptionedSet, prompt
from salun_fast.demo.small_pipeline import PURPOSE, build_pipeline
from salun_fast.diffusion.denoising import Denoising, uniform_timesteps
from salun_fast.methods.loop import repeatable

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ENCODE_BATCH = 256
OnStep = Callable[[], None]


@dataclass(frozen=True)
class PipelineTraining:
    """Settings of :func:`train_pipeline`; the defaults are those of the shipped weights.

    Learning rates are the highest of a schedule that rises over ``warmup`` of the steps and falls
    to zero as a cosine. kl: weight of the mean KL divergence per latent against a mean error per
    pixel in -1..1. rounds: how often UNet and
    text encoder go through ``steps``, each time from the highest rate (warm restarts, Loshchilov &
    Hutter 2017). prompt_dropout: share of pictures whose caption is replaced by the empty
    prompt, for classifier-free guidance. ema: decay of the average that becomes the weights.
    """

    vae_steps: int = 3000
    vae_batch: int = 16
    vae_lr: float = 2e-3
    kl: float = 3e-4
    steps: int = 2200
    rounds: int = 2
    batch: int = 64
    lr: float = 1e-3
    warmup: float = 0.05
    prompt_dropout: float = 0.1
    ema: float = 0.995

    def __post_init__(self) -> None:
        for name in ("vae_steps", "vae_batch", "steps", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("warmup", "prompt_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), found {getattr(self, name)}")


def train_pipeline(
    pictures: CaptionedSet,
    settings: PipelineTraining | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> StableDiffusionPipeline:
    """A pipeline trained from nothing on ``pictures``, in fp32 on the CPU and in eval mode.

    Same pictures, settings, seed, machine and thread count: same weights, bit for bit. Raises
    ValueError for no pictures, ImportError where diffusers or transformers is missing.
    """
    settings = settings or PipelineTraining()
    if len(pictures) == 0:
        raise ValueError("pictures must hold at least one picture, found none")
    captions = _captions(pictures)
    # Of their own, so that a stage draws the same whatever the length of those before it.
    first, *others = (
        torch.Generator().manual_seed(seed + stage) for stage in range(1 + settings.rounds)
    )
    with repeatable(seed, torch.device("cpu")):
        pipeline = build_pipeline(captions, size=pictures.images.shape[-1])
        with _bar("VAE", settings.vae_steps, progress) as on_step:
            train_vae(pipeline, pictures.images, settings, first, on_step)
        latents = encode(pipeline, pictures.images)
        with _bar("UNet", settings.rounds * settings.steps, progress) as on_step:
            for draws in others:
                _train_denoiser(pipeline, latents, pictures, captions, settings, draws, on_step)
    return pipeline


def train_vae(
    pipeline: StableDiffusionPipeline,
    images: Tensor,
    settings: PipelineTraining,
    generator: torch.Generator,
    on_step: OnStep,
) -> None:
    """Fits ``pipeline.vae`` to uint8 images [n, 3, h, w] and sets its scaling factor.

    Loss: absolute error per pixel + kl * KL divergence per latent (Rombach et al. 2022, without
    the perceptual and adversarial terms, which pictures this small do without).
    """
    vae: Any = pipeline.vae
    vae.train()
    optimizer, schedule = _adam(vae.parameters(), settings.vae_lr, settings.vae_steps, settings)
    for _ in range(settings.vae_steps):
        drawn = torch.randint(len(images), (settings.vae_batch,), generator=generator)
        inputs = to_model(images[drawn])
        posterior = vae.encode(inputs).latent_dist
        outputs = vae.decode(posterior.sample(generator=generator)).sample
        divergence = posterior.kl().sum() / posterior.mean.numel()
        _descend(F.l1_loss(outputs, inputs) + settings.kl * divergence, optimizer, schedule)
        on_step()
    vae.eval().requires_grad_(True)
    vae.register_to_config(scaling_factor=1.0)
    spread = encode(pipeline, images[:: max(1, len(images) // 4096)]).std()
    vae.register_to_config(scaling_factor=1.0 / float(spread))


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, images: Tensor) -> Tensor:
    """Scaled latents fp32 [n, 4, h / 4, w / 4] of uint8 images [n, 3, h, w]: posterior means."""
    vae: Any = pipeline.vae
    parts = [
        vae.encode(to_model(part)).latent_dist.mean for part in torch.split(images, ENCODE_BATCH)
    ]
    scaled: Tensor = torch.cat(parts) * vae.config.scaling_factor
    return scaled


def to_model(images: Tensor) -> Tensor:
    """uint8 0..255 as fp32 in -1..1."""
    return images.float() / 127.5 - 1.0


def _train_denoiser(
    pipeline: StableDiffusionPipeline,
    latents: Tensor,
    pictures: CaptionedSet,
    captions: list[str],
    settings: PipelineTraining,
    generator: torch.Generator,
    on_step: OnStep,
) -> None:
    """Fits UNet and text encoder to predict the noise in latents, given the caption."""
    ema_model = need("diffusers.training_utils", PURPOSE, extra="diffusion").EMAModel
    weights = [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]
    average = ema_model(weights, decay=settings.ema)
    optimizer, schedule = _adam(weights, settings.lr, settings.steps, settings)
    denoising = Denoising(pipeline.scheduler)
    tokens = tokenize(pipeline, ["", *captions])
    caption_index = pictures.objects * len(STYLES) + pictures.styles + 1  # 0 is the empty prompt
    _set_training(pipeline, True)
    for _ in range(settings.steps):
        drawn = torch.randint(len(latents), (settings.batch,), generator=generator)
        kept = torch.rand(settings.batch, generator=generator) >= settings.prompt_dropout
        embeddings = pipeline.text_encoder(tokens)[0][caption_index[drawn] * kept]
        loss = _noise_error(pipeline, denoising, latents[drawn], embeddings, generator)
        _descend(loss, optimizer, schedule)
        average.step(weights)
        on_step()
    average.copy_to(weights)
    _set_training(pipeline, False)


def tokenize(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """int64 [n, limit], padded to the tokenizer's limit as the pipeline does."""
    tokenizer: Any = pipeline.tokenizer
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _noise_error(
    pipeline: StableDiffusionPipeline,
    denoising: Denoising,
    latents: Tensor,
    embeddings: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, the simple loss)."""
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = uniform_timesteps(len(latents), denoising.timesteps, generator)
    noisy = denoising.noised(latents, noise, timesteps)
    predicted = pipeline.unet(noisy, timesteps, embeddings).sample
    return F.mse_loss(predicted, denoising.target(latents, noise, timesteps))


def _captions(pictures: CaptionedSet) -> list[str]:
    """Every caption, by object and then by style."""
    return [prompt(word, style) for word in pictures.object_words for style in STYLES]


def _set_training(pipeline: StableDiffusionPipeline, mode: bool) -> None:
    for module in (pipeline.unet, pipeline.text_encoder):
        nn.Module.train(module, mode)


def _adam(
    weights: Any, lr: float, steps: int, settings: PipelineTraining
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Adam under a linear rise and a cosine fall."""
    optimizer = torch.optim.Adam(weights, lr=lr)
    rise = max(1, round(settings.warmup * steps))

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _descend(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> None:
    """One step, its gradient clipped to norm 1."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    schedule.step()


@contextmanager
def _bar(title: str, steps: int, enabled: bool) -> Iterator[OnStep]:
    if not enabled:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("[progress.description]{task.description}", *columns, transient=True) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda: bar.advance(task)
