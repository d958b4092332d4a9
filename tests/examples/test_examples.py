"""Every file in examples/ does what it says: the network forgets, and frozen weights stay.

``digits.py`` is what they share; its ``Result`` is what each ``main`` returns.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.processes import run_ranks

FOLDER = Path(__file__).parents[2] / "examples"


class Run(NamedTuple):
    """How to call an example's ``main``. ranks: 0 where it runs in this process; folder: whether
    it wants one to write to; checkpoint: what it leaves there and goes on from, mask included;
    settings: of torch._dynamo, which older versions of torch lack."""

    ranks: int = 0
    folder: bool = False
    checkpoint: str = ""
    settings: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}  # noqa: RUF012 - never written


RUNS = {
    "accelerate_loop": Run(folder=True),
    # inductor compiles for long
    "compiled_step": Run(settings=("trace_autograd_ops",), arguments={"backend": "aot_eager"}),
    "ddp": Run(ranks=2),
    "fsdp2": Run(ranks=2, folder=True),
    "lightning_module": Run(folder=True, checkpoint="epoch=1.ckpt"),
    "transformers_trainer": Run(folder=True, checkpoint="checkpoint-20"),
}


def test_every_example_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"digits", *RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_forgets_and_keeps_frozen_weights(name, tmp_path, alone):
    run = RUNS[name]
    if not all(hasattr(torch._dynamo.config, setting) for setting in run.settings):
        pytest.skip(f"torch {torch.__version__} has no {run.settings}")
    arguments = {**run.arguments, **({"folder": tmp_path / name} if run.folder else {})}
    if run.ranks:
        results = run_ranks(main_of, run.ranks, tmp_path, name, arguments)
    else:
        results = [main_of(0, 1, name, arguments)]
    if run.checkpoint:
        arguments["resume_from"] = arguments["folder"] / run.checkpoint
        results.append(main_of(0, 1, name, arguments))
    for result in results:
        assert result.forget[0] > 80
        assert result.forget[1] < 20
        assert result.retain[0] > 90
        assert result.retain[1] > result.retain[0] - 10
        assert result.frozen > 0
        assert result.frozen_changed == 0
        assert result.mask == results[0].mask


def main_of(rank: int, world: int, name: str, arguments: dict[str, Any]) -> Any:
    """What ``main`` of an example returns; it imports its neighbours, as a script does."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name).main(**arguments)


@pytest.fixture
def alone(monkeypatch):
    """What an example sets for its process is taken back: path and modules, settings of
    torch.compile, accelerate's singletons."""
    config = torch._dynamo.config
    monkeypatch.syspath_prepend(FOLDER)
    known = {name for run in RUNS.values() for name in run.settings if hasattr(config, name)}
    with config.patch({name: getattr(config, name) for name in known}):
        yield
    for name in ("digits", *RUNS):
        sys.modules.pop(name, None)
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
