"""``sample``: a picture of what a pipeline draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salun_fast.cli import show


def sample(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_PIPELINE",
            help="Run folder of unlearn ddpm|concept (before and after), or a pipeline's folder.",
        ),
    ],
    classes: Annotated[
        list[int] | None, typer.Option("--class", help="A class to draw; may be repeated.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to draw; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures in a row.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same noise.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is none. Default: the run's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the sampler. Default: the run's.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute, e.g. cuda.")] = "cpu",
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("samples.png"),
) -> None:
    """Draw pictures of classes or prompts; of a run, before and after from the same noise."""
    from salun_fast.diffusion_workflow import sample as draw

    draw(
        source,
        out,
        classes=classes or (),
        prompts=prompts or (),
        count=count,
        seed=seed,
        guidance_scale=guidance,
        steps=steps,
        device=device,
    )
    show.written(out)
