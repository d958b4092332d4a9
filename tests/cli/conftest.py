"""A two-channel ResNet-18 on the digits: every command in a second or two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from salun_fast.cli import app

TINY = ["width=4", "train.epochs=1", "train.lr=0.05", "train.schedule=constant"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def fine(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True, scope="package")
def _few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def original(tmp_path_factory) -> Path:
    """The run folder of a trained model."""
    folder = tmp_path_factory.mktemp("runs") / "original"
    fine("train", *TINY, "--out", folder)
    return folder


@pytest.fixture(scope="package")
def unlearned(original, tmp_path_factory) -> Path:
    """The run folder of a SalUn run that started from ``original``."""
    folder = tmp_path_factory.mktemp("runs") / "salun"
    fine("unlearn", "--from", original, "unlearn.epochs=2", "forget_class=3", "--out", folder)
    return folder


@pytest.fixture(scope="package")
def retrained(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "retrain"
    fine("unlearn", "--from", original, "method=retrain", "forget_class=3", "--out", folder)
    return folder
