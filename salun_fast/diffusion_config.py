"""Configurations of diffusion runs, checked as in ``salun_fast.config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

FRAME_STEPS = 100  # steps between two frames of the animation; 0 makes none


@dataclass
class DDPMTrainConfig:
    """What ``train ddpm`` goes by.

    data, root, download: as ``data.load_images`` takes them; pictures are resized to the UNet's
    ``sample_size`` and grey ones repeated to its ``in_channels``. unet: of diffusers' UNet2DModel,
    scheduler: of its DDPMScheduler, both by their configuration keys; what is not given is small
    and fits the data. train: fields of StepSettings. leave_out: a class that is not shown, for the
    retrained model that unlearning is compared with; then the run is judged as ``unlearn ddpm``
    does it, by judge, inception, samples_per_class, guidance_scale and sampling_steps.
    """

    COMMANDS: ClassVar[tuple[str, ...]] = ("train ddpm",)

    data: str = "digits"
    root: str | None = None
    download: bool = False
    leave_out: int | None = None
    judge: str | None = None
    inception: str | None = None
    samples_per_class: int = 50
    guidance_scale: float = 3.0
    sampling_steps: int = 15
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    unet: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def presets() -> Mapping[str, object]:
        return {}


@dataclass
class DDPMConfig:
    """What ``unlearn ddpm`` goes by.

    pipeline: folder of a ClassConditionalPipeline. data, root, download: as for ``train ddpm``.
    forget_class, replacement_class, method, preset, mask (a file): as for ``unlearn_ddpm``;
    unlearn: fields of DDPMSettings. judge: run folder of ``train``, whose classifier judges
    samples_per_class generated images of each class; without it there are pictures and no
    numbers. inception: file of Inception v3's weights, for FID in place of the distance in the
    judge's features. guidance_scale: as diffusers counts it, 1 is none. snapshot_every: steps
    between two frames of the animation, 0 for none.
    """

    COMMANDS: ClassVar[tuple[str, ...]] = ("unlearn ddpm",)

    pipeline: str | None = None
    data: str = "digits"
    root: str | None = None
    download: bool = False
    forget_class: int | None = None
    replacement_class: int | None = None
    method: str = "salun"
    preset: str = "paper"
    mask: str | None = None
    judge: str | None = None
    inception: str | None = None
    samples_per_class: int = 50
    guidance_scale: float = 3.0
    sampling_steps: int = 15
    snapshot_every: int = FRAME_STEPS
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    unlearn: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def presets() -> Mapping[str, object]:
        """The settings that each preset stands for."""
        from salun_fast.methods.diffusion_settings import DDPM_PRESETS

        return DDPM_PRESETS


@dataclass
class ConceptConfig:
    """What ``unlearn concept`` goes by.

    pipeline: folder of a StableDiffusionPipeline. forget_prompt, replacement_prompt, method,
    preset, mask (a file): as for ``unlearn_concept``; unlearn: fields of ConceptSettings.
    retain_prompts: what is to stay. forget_images, retain_images: folders of pictures; without
    one, ``images`` pictures are generated from its prompts before unlearning, as SalUn does. A
    folder of retain images takes one retain prompt for all, or one per picture by file name.
    clip_model: folder of a CLIP model that scores samples_per_prompt pictures of each shown
    prompt; without it there are pictures and no numbers. guidance_scale, sampling_steps: of
    everything generated. snapshot_every: as for ``unlearn ddpm``.
    """

    COMMANDS: ClassVar[tuple[str, ...]] = ("unlearn concept",)

    pipeline: str | None = None
    forget_prompt: str | None = None
    replacement_prompt: str | None = None
    retain_prompts: list[str] = field(default_factory=list)
    forget_images: str | None = None
    retain_images: str | None = None
    images: int = 800
    method: str = "salun"
    preset: str = "paper"
    mask: str | None = None
    clip_model: str | None = None
    samples_per_prompt: int = 8
    guidance_scale: float = 7.5
    sampling_steps: int = 50
    snapshot_every: int = FRAME_STEPS
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    unlearn: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def presets() -> Mapping[str, object]:
        """The settings that each preset stands for."""
        from salun_fast.methods.diffusion_settings import CONCEPT_PRESETS

        return CONCEPT_PRESETS
