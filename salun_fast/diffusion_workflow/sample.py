"""A picture of what a pipeline draws; of a run, before and after with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_fast.diffusion import pipelines
from salun_fast.diffusion.classes import class_count
from salun_fast.diffusion_config import ConceptConfig, DDPMConfig
from salun_fast.diffusion_workflow import concept, ddpm, kept
from salun_fast.diffusion_workflow.sampling import Asked, Sampling, pictures
from salun_fast.gpu import known_device
from salun_fast.report.grid import Panel, grid
from salun_fast.report.pictures import write_png
from salun_fast.report.words import METHOD_NAMES
from salun_fast.run import RunFolder

CLASS_DEFAULTS, PROMPT_DEFAULTS = DDPMConfig(), ConceptConfig()


@dataclass(frozen=True)
class _Source:
    """folders: of pipelines by the title of their panel. asked, forgotten: what is shown where
    nothing is asked for, and what of that is forgotten."""

    folders: dict[str, Path]
    asked: list[Asked]
    forgotten: Asked | None
    guidance_scale: float
    steps: int


def sample(
    source: Path,
    out: Path,
    *,
    classes: Sequence[int] = (),
    prompts: Sequence[str] = (),
    count: int = kept.SHOWN,
    seed: int = 0,
    guidance_scale: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
) -> None:
    """Write a PNG: a row per class or prompt, a column per picture.

    source: a pipeline's folder, or a run folder of ``unlearn ddpm`` or ``unlearn concept``, whose
    original is shown beside it. classes, prompts: by default all classes, or the run's prompts.
    guidance_scale, steps: by default the run's.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, found {count}")
    found = _found(source)
    where = known_device(device)
    loaded = {title: pipelines.load(folder, where) for title, folder in found.folders.items()}
    first = next(iter(loaded.values()))
    asked = _asked(first, found, classes, prompts, next(iter(found.folders.values())))
    sampling = Sampling(
        found.guidance_scale if guidance_scale is None else guidance_scale,
        found.steps if steps is None else steps,
        seed,
    )
    panels = [
        Panel(title, [pictures(pipeline, what, count, sampling) for what in asked])
        for title, pipeline in loaded.items()
    ]
    forgotten = [index for index, what in enumerate(asked) if what == found.forgotten]
    labels = [what if isinstance(what, str) else f"class {what}" for what in asked]
    write_png(grid(panels, labels, forgotten=forgotten), out)


def _found(source: Path) -> _Source:
    run = RunFolder(source)
    if run.exists and run.command == ddpm.COMMAND:
        config = run.config(DDPMConfig)
        return _of_run(run, config, [], config.forget_class)
    if run.exists and run.command == concept.COMMAND:
        text = run.config(ConceptConfig)
        prompts: list[Asked] = [*concept.Prompts.of(text).shown]
        return _of_run(run, text, prompts, text.forget_prompt)
    folder = pipelines.found_in(source)
    kind = CLASS_DEFAULTS if pipelines.is_class_conditional(folder) else PROMPT_DEFAULTS
    return _Source({source.name: folder}, [], None, kind.guidance_scale, kind.sampling_steps)


def _of_run(
    run: RunFolder, config: DDPMConfig | ConceptConfig, asked: list[Asked], forgotten: Asked | None
) -> _Source:
    after = pipelines.found_in(run.path)
    try:
        before = pipelines.found_in(str(config.pipeline))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the original pipeline of this run, {config.pipeline}, is gone; sample {after} to "
            "see the unlearned one alone"
        ) from error
    folders = {"before": before, f"after {METHOD_NAMES[config.method]}": after}
    return _Source(folders, asked, forgotten, config.guidance_scale, config.sampling_steps)


def _asked(
    pipeline: Any, found: _Source, classes: Sequence[int], prompts: Sequence[str], folder: Path
) -> Sequence[Asked]:
    if not pipelines.is_class_conditional(folder):
        if classes:
            raise ValueError(f"{folder} takes prompts, found --class; pass --prompt instead")
        if not (prompts or found.asked):
            raise ValueError(f"{folder} takes prompts: pass --prompt with what it should draw")
        return [*prompts] or found.asked
    if prompts:
        raise ValueError(f"{folder} takes classes, found --prompt; pass --class instead")
    known = class_count(pipeline.unet)
    wrong = [label for label in classes if not 0 <= label < known]
    if wrong:
        raise ValueError(f"--class must be one of 0..{known - 1} here, found {wrong[0]}")
    forgotten = found.forgotten if isinstance(found.forgotten, int) else 0
    every: list[Asked] = [*kept.shown_rows([str(label) for label in range(known)], forgotten)]
    return [*classes] or every
