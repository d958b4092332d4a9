"""``train ddpm``, ``unlearn ddpm`` and ``unlearn concept``."""

from __future__ import annotations

from pathlib import Path

from salun_fast.cli import show
from salun_fast.cli.options import (
    ConceptOverrides,
    ConfigFile,
    DiffusionOverrides,
    FromPipeline,
    Out,
    Resume,
    TrainOverrides,
    resolve_diffusion,
)


def train_ddpm(
    overrides: TrainOverrides = None,
    config: ConfigFile = None,
    out: Out = Path("runs/ddpm"),
    resume: Resume = False,
) -> None:
    """Train a small class-conditional diffusion model with classifier-free guidance.

    E.g. data=fashion-mnist unet.sample_size=16 train.steps=5000 train.lr=1e-3 train.batch_size=64.
    leave_out=3 trains the model that unlearning class 3 is compared with.
    """
    from salun_fast.diffusion_config import DDPMTrainConfig
    from salun_fast.diffusion_workflow import train_ddpm_run
    from salun_fast.run import RunFolder

    folder = RunFolder(out)
    resolved = resolve_diffusion(DDPMTrainConfig, overrides, config, None, folder, resume=resume)
    result = train_ddpm_run(resolved, folder, resume=resume)
    show.trained_steps(result)
    show.written(folder.pipeline_folder)


def unlearn_ddpm(
    overrides: DiffusionOverrides = None,
    config: ConfigFile = None,
    start: FromPipeline = None,
    out: Out = Path("runs/unlearned-ddpm"),
    resume: Resume = False,
) -> None:
    """Make a class-conditional diffusion model forget a class.

    E.g. --from runs/ddpm forget_class=3 judge=runs/original unlearn.steps=500. The judge, a run of
    salun-fast train, gives the numbers; without it there are pictures only.
    """
    from salun_fast.diffusion_config import DDPMConfig
    from salun_fast.diffusion_workflow import unlearn_ddpm_run
    from salun_fast.run import RunFolder

    folder = RunFolder(out)
    resolved = resolve_diffusion(DDPMConfig, overrides, config, start, folder, resume=resume)
    show.unlearned(unlearn_ddpm_run(resolved, folder, resume=resume))
    show.written(folder.pipeline_folder, folder.patch_file, folder.report_file)


def unlearn_concept(
    overrides: ConceptOverrides = None,
    config: ConfigFile = None,
    start: FromPipeline = None,
    out: Out = Path("runs/unlearned-concept"),
    resume: Resume = False,
) -> None:
    """Make a text-to-image pipeline forget what a prompt means.

    E.g. --from FOLDER 'forget_prompt="a photo of a dog"' 'replacement_prompt="a photo of a cat"'
    'retain_prompts=["a photo of a cat","a photo of a car"]' unlearn.trainable=xattn. Pictures of
    the prompts are generated first, or come from forget_images=FOLDER and retain_images=FOLDER.
    """
    from salun_fast.diffusion_config import ConceptConfig
    from salun_fast.diffusion_workflow import unlearn_concept_run
    from salun_fast.run import RunFolder

    folder = RunFolder(out)
    resolved = resolve_diffusion(ConceptConfig, overrides, config, start, folder, resume=resume)
    show.unlearned(unlearn_concept_run(resolved, folder, resume=resume))
    show.written(folder.pipeline_folder, folder.patch_file, folder.report_file)
