"""The small models of ``demo ddpm``: data at 16 x 16, diffusion model, judge; made, kept, found.

``make_models`` trains them and writes the folder that the package ships, so that the demo only
has to unlearn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast import files, models
from salun_fast._extras import need
from salun_fast.data import ImageData, ImageSet, load_images
from salun_fast.diffusion import pipelines
from salun_fast.methods import train_classifier
from salun_fast.methods.ddpm import train_ddpm
from salun_fast.methods.loop import repeatable
from salun_fast.weights import load_weights, save_weights

SIDE = 16
SHIPPED = Path(__file__).with_name("weights")
JUDGE_WIDTH = 8


@dataclass(frozen=True)
class Recipe:
    """How the models of one data set are made. channels: of the UNet's three levels.
    forget_class: the class that the shipped retrained model never saw."""

    channels: tuple[int, int, int]
    forget_class: int
    train: Mapping[str, Any]
    judge: Mapping[str, Any]


RECIPES: Mapping[str, Recipe] = {
    "fashion-mnist": Recipe(
        channels=(16, 32, 64),
        forget_class=1,
        train={"steps": 5000, "lr": 1e-3, "batch_size": 64},
        judge={"epochs": 6, "lr": 0.1, "batch_size": 256},
    ),
    "digits": Recipe(
        channels=(16, 32, 32),
        forget_class=3,
        train={"steps": 2000, "lr": 1e-3, "batch_size": 64},
        judge={"epochs": 20, "lr": 0.1, "batch_size": 64},
    ),
}


@dataclass(frozen=True)
class DemoModels:
    """original: UNet in fp32 and eval mode; scheduler: of its training. judge: a classifier of
    images in [-1, 1]."""

    original: Any
    scheduler: Any
    judge: nn.Module


def pictures(name: str, *, root: str | None = None) -> ImageData:
    """The data set as grey uint8 images of 16 x 16, handed out in [-1, 1]."""
    data = load_images(name, root=root)

    def small(part: ImageSet) -> ImageSet:
        return ImageSet(resized(part.images), part.labels, (0.5,), (0.5,))

    return replace(data, train=small(data.train), test=small(data.test))


def resized(images: Tensor) -> Tensor:
    """uint8 [n, c, h, w] to [n, c, 16, 16], averaging where they shrink."""
    size = (SIDE, SIDE)
    scaled = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def build_unet(recipe: Recipe, classes: int) -> Any:
    """A class-conditional UNet with a null class, randomly initialised."""
    diffusers = need("diffusers", "the diffusion demo", extra="diffusion")
    return diffusers.UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        num_class_embeds=classes + 1,
    )


def build_judge(classes: int) -> nn.Module:
    return models.build("resnet18", classes, width=JUDGE_WIDTH, in_channels=1)


def make_models(
    name: str, folder: Path, *, root: str | None = None, seed: int = 0, progress: bool = True
) -> None:
    """Train original, retrained model and judge, and write them to ``folder``.

    A killed call goes on where it was. Weights are kept in fp16: half the size, and what the
    rounding changes is part of the models from then on.
    """
    recipe, data = RECIPES[name], pictures(name, root=root)
    folder.mkdir(parents=True, exist_ok=True)
    kept = data.train.labels != recipe.forget_class
    facts: dict[str, Any] = {"data": name, "seed": seed, "forget_class": recipe.forget_class}
    facts |= {"train": dict(recipe.train), "channels": list(recipe.channels)}
    facts["judge_accuracy"] = _make_judge(recipe, data, folder, seed, progress)
    parts = {"original": data.train, "retrained": data.train.subset(kept.nonzero().flatten())}
    for number, (kind, part) in enumerate(parts.items()):
        make_unet(
            recipe, data.num_classes, part, folder / kind, seed=seed + number, progress=progress
        )
    files.write_text(folder / "facts.json", json.dumps(facts, indent=2) + "\n")


def make_unet(
    recipe: Recipe, classes: int, data: ImageSet, folder: Path, *, seed: int, progress: bool = True
) -> None:
    """Train a UNet from scratch on ``data`` and write it as a pipeline folder, once."""
    from diffusers import DDPMScheduler

    from salun_fast.diffusion.class_pipeline import ClassConditionalPipeline

    if (folder / "model_index.json").is_file():
        return
    work = folder.with_name(f"{folder.name}-training")
    with repeatable(seed, torch.device("cpu")):
        unet = build_unet(recipe, classes)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    settings: dict[str, Any] = {"schedule": "cosine", "warmup_steps": 100, "ema_decay": None}
    result = train_ddpm(
        unet, scheduler, data, seed=seed, run_dir=work, resume=True, progress=progress,
        **settings | dict(recipe.train),
    )  # fmt: skip
    pipelines.save_half(ClassConditionalPipeline(result.unet, scheduler), folder)


def load_models(folder: Path, data: ImageData, device: str = "cpu") -> DemoModels:
    """What every job needs of a folder that ``make_models`` wrote, in fp32 on ``device``."""
    judge = build_judge(data.num_classes)
    load_weights(judge, folder / "judge.safetensors")
    original, scheduler = load_unet(folder / "original", device)
    return DemoModels(original, scheduler, judge.to(device).eval())


def load_unet(folder: Path, device: str = "cpu") -> tuple[Any, Any]:
    """UNet (fp32, eval mode, on ``device``) and scheduler of a pipeline folder."""
    pipeline = pipelines.load(folder, torch.device(device))
    return pipeline.unet, pipeline.scheduler


def _make_judge(recipe: Recipe, data: ImageData, folder: Path, seed: int, progress: bool) -> float:
    """Train the judge; its accuracy on the test images, percent."""
    with repeatable(seed, torch.device("cpu")):
        judge = build_judge(data.num_classes)
    result = train_classifier(
        judge,
        data.train,
        test=data.test,
        seed=seed,
        run_dir=folder / "judge-training",
        resume=True,
        progress=progress,
        schedule="cosine",
        warmup_epochs=1,
        readout_images=len(data.test),
        **recipe.judge,
    )
    save_weights(result.model, folder / "judge.safetensors")
    accuracy = result.history[-1].ta
    assert accuracy is not None
    return accuracy
