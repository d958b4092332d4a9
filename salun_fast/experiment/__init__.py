"""The full comparison: every method, both tasks, several seeds, resumable, as JSON lines."""

from salun_fast.experiment.log import read_records
from salun_fast.experiment.runner import run_experiment
from salun_fast.experiment.settings import EXPERIMENTS, ExperimentSettings
from salun_fast.experiment.summary import Row, summarise

__all__ = [
    "EXPERIMENTS",
    "ExperimentSettings",
    "Row",
    "read_records",
    "run_experiment",
    "summarise",
]
