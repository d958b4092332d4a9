"""Runs that are killed and go on: what each process of tests/test_crash.py does.

A server that has imported this module forks each life, so that it begins at once.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo  # the first optimizer would, in every life anew
import torch.nn.functional as F
from torch import Tensor

from salun_fast import files, sealed
from salun_fast.data import ImageSet
from salun_fast.methods import unlearn_classifier
from salun_fast.methods.diffusion import MaskedRun, Watch
from salun_fast.methods.diffusion_settings import UnlearnSettings
from salun_fast.methods.loop import repeatable, restore, run_folder
from salun_fast.methods.step_loop import Loss
from tests.methods.tiny import TinyNet, blobs

SAVES = 8  # checkpoints of a whole run
NEW = "new" * 10_000  # more than one buffer


def live(run: str, folder: Path, save: int = 0, where: str = "") -> None:
    """Begin the run in ``folder``, or go on with it; die ``where`` of this life's ``save``-th
    checkpoint, if that is given."""
    torch.set_num_threads(1)
    if where:
        MOMENTS[where](save)
    RUNS[run](folder)


def overwrite(target: Path, where: str) -> None:
    """Replace what is in ``target`` by NEW, dying ``where`` that is."""

    def write(path: Path) -> None:
        with path.open("w") as file:
            file.write(NEW[: len(NEW) // 2])
            file.flush()
            if where == "half written":
                die()
            file.write(NEW[len(NEW) // 2 :])

    if where in MOMENTS and where != "half written":
        MOMENTS[where](1)
    files.atomic_write(target, write)


# --- runs -----------------------------------------------------------------------------------------


def classifier(folder: Path) -> None:
    unlearn_classifier(
        tiny_net(),
        blobs(22, seed=1),
        blobs(50, seed=2),
        epochs=SAVES,
        batch_size=16,
        lr=0.05,
        augment="flip_crop",
        schedule="cosine",
        seed=3,
        progress=False,
        run_dir=folder,
        resume=True,
    )


def steps(folder: Path) -> None:
    """The loop of diffusion models, with dropout and a mask, around a model that needs no other
    package."""
    settings = UnlearnSettings(
        steps=2 * SAVES, checkpoint_every=2, report_every=1, lr=0.01, ema_decay=None
    )
    identity = {"what": "steps of a tiny net"}
    data, model = blobs(48, seed=1), tiny_net()
    resumed = restore(run_folder(folder), True, identity)
    names = [name for name, _ in model.named_parameters()]
    with repeatable(3, torch.device("cpu")):
        run = MaskedRun(
            model, settings, "salun", 3, lambda: losses(model, data), names, names, None, resumed
        )
        loop = run.loop(
            lambda number: objective(model, data, number),
            identity,
            run_folder(folder),
            Watch(progress=False),
        )
        loop.run()


RUNS: dict[str, Callable[[Path], None]] = {"classifier": classifier, "steps": steps}


def tiny_net() -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyNet()


def losses(model: TinyNet, data: ImageSet) -> Iterator[Tensor]:
    for number in range(3):
        yield objective(model, data, number).total


def objective(model: TinyNet, data: ImageSet, number: int) -> Loss:
    images, labels = data.batch(torch.arange(16) + 16 * (number % 3))
    loss = F.cross_entropy(model(images.float()), labels)
    return Loss(loss, {"forget": loss.detach()})


# --- moments of death -----------------------------------------------------------------------------


def die(*args: Any, **kwargs: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def at_call(owner: Any, name: str, number: int, last: Callable[..., Any] = die) -> None:
    """The ``number``-th call of ``owner.name``, from 1, is one of ``last`` instead."""
    before, calls = getattr(owner, name), iter(range(1, number + 1))

    def counted(*args: Any, **kwargs: Any) -> Any:
        return (last if next(calls, None) == number else before)(*args, **kwargs)

    setattr(owner, name, counted)


def half_written(content: Any, path: Path) -> NoReturn:
    whole = io.BytesIO()
    torch.serialization.save(content, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    die()


# Each checkpoint is one call of torch.save, sealing, sync, move into place and the folder's sync.
MOMENTS: dict[str, Callable[[int], None]] = {
    "half written": lambda save: at_call(torch, "save", save, half_written),
    "not sealed": lambda save: at_call(sealed, "_seal", save),
    "not synced": lambda save: at_call(os, "fsync", 2 * save - 1),
    "not in place": lambda save: at_call(Path, "replace", save),
    "folder not synced": lambda save: at_call(os, "fsync", 2 * save),
}
