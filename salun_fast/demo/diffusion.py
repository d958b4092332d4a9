"""What ``demo ddpm`` and ``demo concept`` run, and what they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from salun_fast import config as configs
from salun_fast import files
from salun_fast.data import load_images
from salun_fast.demo.comparison import TABLE, frozen, plain
from salun_fast.demo.concept import ConceptDemo, run_concept_demo
from salun_fast.demo.concept_weights import SHIPPED as SHIPPED_CONCEPT
from salun_fast.demo.concept_weights import train_concept_weights
from salun_fast.demo.ddpm import DDPMDemo, run_ddpm_demo
from salun_fast.demo.ddpm_models import RECIPES, make_models
from salun_fast.demo.ddpm_models import SHIPPED as SHIPPED_DDPM
from salun_fast.experiment.log import OnRecord
from salun_fast.report.diffusion.markdown import diffusion_markdown
from salun_fast.workflow import rebuild_report

Settings = TypeVar("Settings", DDPMDemo, ConceptDemo)
PREFERRED, FALLBACK = "fashion-mnist", "digits"

# Chosen for SalUn on seed 100, which is not reported; its control and RL use the same.
DDPM_UNLEARN = {"steps": 150, "lr": 1e-3, "alpha": 1e-2, "batch_size": 64, "schedule": "cosine"}
DDPM_OWN = {"ga": {"steps": 40, "lr": 1e-4}}
CONCEPT_UNLEARN = {
    "steps": 120, "lr": 2.5e-4, "alpha": 2.0, "batch_size": 32, "schedule": "cosine",
    "condition_dropout": 0.1,
}  # fmt: skip
CONCEPT_OWN = {"ga": {"steps": 40, "lr": 1e-4}}


def available_data(root: str | None = None) -> str:
    """Fashion-MNIST where it is found, otherwise the digits that come with scikit-learn."""
    try:
        load_images(PREFERRED, root=root)
    except FileNotFoundError:
        return FALLBACK
    return PREFERRED


def ddpm_demo(
    data: str, folder: Path, overrides: Sequence[str] = (), *, train: bool = False
) -> DDPMDemo:
    """The settings of ``demo ddpm`` with ``key=value`` changes (``seeds=[1,2,3]``,
    ``unlearn.lr=1e-4``). train: the models are made in ``folder/models`` first."""
    if data not in RECIPES:
        raise ValueError(f"data must be one of {', '.join(RECIPES)} in this demo, found {data!r}")
    models = folder / "models" if train else SHIPPED_DDPM / f"ddpm-{data}"
    settings = DDPMDemo(
        data=data,
        models=str(models),
        classes=(RECIPES[data].forget_class,),
        unlearn=DDPM_UNLEARN,
        own=DDPM_OWN,
    )
    settings = _changed(settings, overrides)  # refuses before hours of training
    if train:
        make_models(data, models, root=settings.root)
    return settings


def concept_demo(
    folder: Path, overrides: Sequence[str] = (), *, train: bool = False
) -> ConceptDemo:
    """The settings of ``demo concept`` with ``key=value`` changes; train: as above."""
    models = folder / "models" if train else SHIPPED_CONCEPT
    settings = ConceptDemo(
        data=PREFERRED,
        models=str(models),
        objects=(("trousers", "bag"),),
        styles=(("outline", "plain"),),
        unlearn=CONCEPT_UNLEARN,
        own=CONCEPT_OWN,
    )
    settings = _changed(settings, overrides)
    if train:
        train_concept_weights(models, root=settings.root)
    return settings


def run_diffusion_demo(
    settings: DDPMDemo | ConceptDemo,
    folder: str | os.PathLike[str],
    *,
    command: str | None = None,
    on_record: OnRecord | None = None,
) -> Path:
    """Run what is missing, then write report.html and table.md; returns the report's path."""
    path = Path(folder)
    run: Callable[..., Any] = run_ddpm_demo if isinstance(settings, DDPMDemo) else run_concept_demo
    run(settings, path, command=command, on_record=on_record)
    files.write_text(path / TABLE, diffusion_markdown(path))
    return rebuild_report([path])


def _changed(settings: Settings, overrides: Sequence[str]) -> Settings:
    fixed = sorted({"data", "models"} & set(configs.parse_overrides(overrides)))
    if fixed:
        raise ValueError(
            f"{fixed[0]} cannot be changed by key=value here: the models belong to their data; use "
            "--data, or --train for models of your own"
        )
    values = configs.override_mapping(plain(asdict(settings)), overrides)
    try:
        return replace(settings, **{name: frozen(value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"these settings do not make a comparison: {error}") from error
