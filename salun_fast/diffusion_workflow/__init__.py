"""Whole runs of diffusion models from a configuration into a run folder: what the CLI calls."""

from salun_fast.diffusion_workflow.concept import evaluate_concept, unlearn_concept_run
from salun_fast.diffusion_workflow.ddpm import evaluate_ddpm, unlearn_ddpm_run
from salun_fast.diffusion_workflow.sample import sample
from salun_fast.diffusion_workflow.train import train_ddpm_run

__all__ = [
    "evaluate_concept",
    "evaluate_ddpm",
    "sample",
    "train_ddpm_run",
    "unlearn_concept_run",
    "unlearn_ddpm_run",
]
