"""Forgetting a prompt of a text-to-image pipeline: one run, and scoring it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salun_fast import machine, workflow
from salun_fast.diffusion import pipelines
from salun_fast.diffusion.components import Components
from salun_fast.diffusion.denoising import Denoising
from salun_fast.diffusion.trainable import trainable_names
from salun_fast.diffusion_config import ConceptConfig
from salun_fast.diffusion_records import Record, run_record, save_samples, told
from salun_fast.diffusion_workflow import kept
from salun_fast.diffusion_workflow.picture_data import picture_folder
from salun_fast.diffusion_workflow.sampling import Sampling, pictures
from salun_fast.diffusion_workflow.training_pictures import Captioned, generated
from salun_fast.evaluation.clip_score import clip_score
from salun_fast.mask import SaliencyMask
from salun_fast.methods.concept import ConceptResult, unlearn_concept, with_unet
from salun_fast.methods.diffusion import fitted_mask
from salun_fast.methods.diffusion_settings import ConceptSettings, resolve_concept
from salun_fast.run import RunFolder

COMMAND = "unlearn concept"


def unlearn_concept_run(
    config: ConceptConfig, folder: RunFolder, *, resume: bool = False
) -> list[Record]:
    """Generate what pictures are missing, unlearn, draw before and after, report.

    Returns the records of the original and of the method.
    """
    settings = resolve_concept(config.method, config.preset, config.unlearn)
    prompts = Prompts.of(config)
    pipeline = _original(config)
    mask = None if config.mask is None else SaliencyMask.load(config.mask)
    _refuse_early(pipeline, settings, config.method, mask)
    pictured = _Pictures.of(config, prompts, pipeline)
    config = replace(config, unlearn=asdict(settings))
    bench = Bench.of(config, pipeline, prompts)
    film = kept.Film(folder, bench.rows, prompts.shown, [0]) if config.snapshot_every else None
    with kept.begun(folder, COMMAND, config, resume=resume):
        forget, retain = pictured.made(folder)
        result = unlearn_concept(
            pipeline,
            forget.images,
            retain.images,
            forget_prompt=prompts.forget,
            replacement_prompt=prompts.replacement,
            retain_prompts=retain.prompts,
            method=config.method,
            preset=config.preset,
            mask=mask,
            seed=config.seed,
            run_dir=folder.path,
            resume=resume,
            on_step=kept.logging(folder),
            on_snapshot=film,
            snapshot_every=config.snapshot_every,
            **config.unlearn,
        )
    return kept.finish(folder, COMMAND, config, pipeline, result, film, bench.record)


def _refuse_early(
    pipeline: Any, settings: ConceptSettings, method: str, mask: SaliencyMask | None
) -> None:
    """What ``unlearn_concept`` would refuse when all pictures are generated."""
    Components.of(pipeline).check_fit()
    Denoising(pipeline.scheduler)
    fitted_mask(mask, method, pipeline.unet, trainable_names(pipeline.unet, settings.trainable))


def evaluate_concept(config: ConceptConfig, folder: RunFolder) -> dict[str, Record]:
    """CLIP scores of the original and the unlearned pipeline: how well pictures of the forget
    prompt, and of the other prompts, fit what was asked.

    Raises ValueError without a CLIP model.
    """
    if config.clip_model is None:
        raise ValueError(
            "evaluating a text-to-image pipeline needs a CLIP model: pass clip_model=FOLDER with "
            "a local copy, e.g. of openai/clip-vit-base-patch32"
        )
    prompts, original = Prompts.of(config), _original(config)
    device = workflow.chosen_device(config)
    unlearned = pipelines.load(pipelines.found_in(folder.path), device)
    bench = Bench.of(config, original, prompts)
    unets = {"original": original.unet, config.method: unlearned.unet}
    return {name: bench.scored(bench.drawn(unet)) for name, unet in unets.items()}


@dataclass(frozen=True)
class Prompts:
    """What is forgotten, what is drawn instead, and what is to stay."""

    forget: str
    replacement: str
    retain: list[str]

    @staticmethod
    def of(config: ConceptConfig) -> Prompts:
        for name in ("forget_prompt", "replacement_prompt", "retain_prompts"):
            if not getattr(config, name):
                example = '["a photo of a cat"]' if name == "retain_prompts" else '"a photo of ..."'
                raise ValueError(f"{name} must be given, e.g. '{name}={example}'")
        assert config.forget_prompt is not None
        assert config.replacement_prompt is not None
        if config.forget_prompt == config.replacement_prompt:
            raise ValueError(
                f"replacement_prompt must differ from forget_prompt, both are "
                f"{config.forget_prompt!r}; name what should be drawn instead"
            )
        if config.forget_prompt in config.retain_prompts:
            raise ValueError(
                f"retain_prompts hold the forget prompt {config.forget_prompt!r}, which would "
                "teach it again; take it out"
            )
        return Prompts(config.forget_prompt, config.replacement_prompt, list(config.retain_prompts))

    @property
    def shown(self) -> list[str]:
        """The rows of the grid; the first is what is forgotten."""
        return list(dict.fromkeys([self.forget, self.replacement, *self.retain]))[: kept.MOST_ROWS]


@dataclass(frozen=True)
class Bench:
    """The pictures to draw of a pipeline and how they are scored, alike for every UNet."""

    config: ConceptConfig
    pipeline: Any
    prompts: Prompts
    sampling: Sampling

    @staticmethod
    def of(config: ConceptConfig, pipeline: Any, prompts: Prompts) -> Bench:
        """Raises what the CLIP model would raise when all is done."""
        if config.samples_per_prompt < 1:
            raise ValueError(
                f"samples_per_prompt must be at least 1, found {config.samples_per_prompt}"
            )
        if config.clip_model is not None:
            black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
            clip_score(black, [prompts.forget], config.clip_model, config.device)
        return Bench(config, pipeline, prompts, Sampling.of(config))

    def rows(self, unet: Any, count: int) -> Tensor:
        """uint8 [rows, count, c, h, w]: a few pictures of each prompt shown."""
        drawing = with_unet(self.pipeline, unet)
        drawing.set_progress_bar_config(disable=True)
        return torch.stack([pictures(drawing, p, count, self.sampling) for p in self.prompts.shown])

    def drawn(self, unet: Any) -> Tensor:
        scored = self.config.clip_model is not None
        return self.rows(unet, self.config.samples_per_prompt if scored else kept.SHOWN)

    def scored(self, drawn: Tensor) -> Record:
        """clip_score: of all prompts but the forgotten one; clip_score_forgotten: of that."""
        assert self.config.clip_model is not None
        count, (first, *others) = drawn.shape[1], self.prompts.shown
        asked = [prompt for prompt in others for _ in range(count)]
        model, device = self.config.clip_model, self.config.device
        return {
            "clip_score": clip_score(drawn[1:].flatten(0, 1), asked, model, device),
            "clip_score_forgotten": clip_score(drawn[0], [first] * count, model, device),
        }

    def record(
        self, folder: RunFolder, method: str, unet: Any, result: ConceptResult | None = None
    ) -> Record:
        """Draw, score and keep the pictures of one UNet."""
        drawn = self.drawn(unet)
        name = f"samples/{method}.safetensors"
        save_samples(folder.path / name, drawn[:, : kept.SHOWN])
        return run_record(
            model="concept",
            task=f"prompt '{self.prompts.forget}'",
            method=method,
            seed=self.config.seed,
            rows=self.prompts.shown,
            forgotten=[0],
            samples=name,
            metrics=None if self.config.clip_model is None else self.scored(drawn),
            result=result,
            overrides=told(result),
        ) | {"machine": machine.facts(self.config.device)}


@dataclass(frozen=True)
class _Pictures:
    """The training pictures: those of folders, read; the others still to be generated."""

    config: ConceptConfig
    prompts: Prompts
    pipeline: Any
    forget: Tensor | None
    retain: Tensor | None

    @staticmethod
    def of(config: ConceptConfig, prompts: Prompts, pipeline: Any) -> _Pictures:
        if config.images < 1:
            raise ValueError(f"images must be at least 1, found {config.images}")
        side = int(pipeline.unet.config.sample_size) * Components.of(pipeline).pixels_per_latent
        channels = int(pipeline.vae.config.in_channels)
        forget, retain = (
            None if path is None else picture_folder(path, name, side, channels)
            for name, path in (
                ("forget_images", config.forget_images),
                ("retain_images", config.retain_images),
            )
        )
        if retain is not None and len(prompts.retain) not in (1, len(retain)):
            raise ValueError(
                f"retain_prompts must be one prompt for all of retain_images, or one for each of "
                f"the {len(retain)} pictures by file name, found {len(prompts.retain)}"
            )
        return _Pictures(config, prompts, pipeline, forget, retain)

    def made(self, folder: RunFolder) -> tuple[Captioned, Captioned]:
        """Forget and retain pictures with a prompt each."""
        count, prompts = self.config.images, self.prompts
        forget, retain = self.forget, self.retain
        return (
            self._generated(folder, [prompts.forget] * count)
            if forget is None
            else Captioned(forget, [prompts.forget] * len(forget)),
            self._generated(folder, [prompts.retain[i % len(prompts.retain)] for i in range(count)])
            if retain is None
            else Captioned(retain, prompts.retain * (len(retain) // len(prompts.retain))),
        )

    def _generated(self, folder: RunFolder, prompts: list[str]) -> Captioned:
        return generated(self.pipeline, prompts, Sampling.of(self.config), folder.cache_folder)


def _original(config: ConceptConfig) -> Any:
    if config.pipeline is None:
        raise ValueError(
            "unlearning needs a pipeline: pass --from with the folder of a StableDiffusionPipeline"
        )
    folder = pipelines.found_in(config.pipeline)
    if pipelines.is_class_conditional(folder):
        raise ValueError(
            f"{folder} holds a ClassConditionalPipeline, which takes no prompts; use unlearn ddpm"
        )
    pipeline = pipelines.load(folder, workflow.chosen_device(config))
    Components.of(pipeline)
    return pipeline
