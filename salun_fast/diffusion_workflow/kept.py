"""What every diffusion run leaves in its folder, and how nothing is left where it was refused."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast._extras import need
from salun_fast.config import Schema
from salun_fast.diffusion import pipelines
from salun_fast.diffusion_records import Record, load_samples, save_samples, step_record
from salun_fast.methods.concept import with_unet
from salun_fast.methods.diffusion import DiffusionResult, DiffusionTrainResult
from salun_fast.methods.step_loop import StepRecord
from salun_fast.patch import UnlearningPatch
from salun_fast.report.diffusion.page import write_diffusion_report
from salun_fast.report.film import film
from salun_fast.run import RunFolder

SHOWN, SHOWN_IN_FRAMES = 8, 4  # pictures per row of the grid, and of a frame of the animation
MOST_ROWS = 10

# Draws, judges and keeps the pictures of a UNet: folder, method, UNet, what made it.
Recorder = Callable[[RunFolder, str, Any, Any], Record]
Rows = Callable[[Any, int], Tensor]  # UNet, pictures per row -> uint8 [rows, k, c, h, w]


@contextmanager
def begun(folder: RunFolder, command: str, config: Schema, *, resume: bool) -> Iterator[None]:
    """A run in ``folder``. What is refused before its first step leaves the disk as it was."""
    for module in ("PIL", "matplotlib", "jinja2"):  # not when all the work is done
        need(module, "the report of a diffusion run")
    missing = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    before = set(folder.path.iterdir()) if folder.path.is_dir() else set()
    folder.begin(command, config, resume=resume)
    try:
        yield
    except (ValueError, TypeError):
        if not folder.metrics() and not folder.checkpoint_file.is_file():
            _remove([path for path in folder.path.iterdir() if path not in before])
            for made in missing:  # the folder and its parents, where nobody else put anything
                with contextlib.suppress(OSError):
                    made.rmdir()
        raise


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def logging(folder: RunFolder) -> Callable[[StepRecord], None]:
    """``on_step`` that keeps the records of a run while it goes on."""
    return lambda record: folder.log(step_record(record))


@dataclass(frozen=True)
class Film:
    """``on_snapshot`` that draws a frame, and the animation of all frames in the end.

    Frames lie beside the checkpoints, so that a resumed run has those of before.
    """

    folder: RunFolder
    rows: Rows
    labels: Sequence[str]
    forgotten: Sequence[int]

    def __call__(self, step: int, unet: nn.Module) -> None:
        save_samples(self._home / f"{step:08d}.safetensors", self.rows(unet, SHOWN_IN_FRAMES))

    def finish(self, path: Path, *, last: int) -> list[int]:
        """Write the animation; returns the steps taken at each frame, up to ``last``."""
        found = {int(file.stem): file for file in sorted(self._home.glob("*.safetensors"))}
        steps = [step for step in found if step <= last]
        frames = ((step, load_samples(found[step])) for step in steps)
        film(path, frames, self.labels, self.forgotten)
        return steps

    @property
    def _home(self) -> Path:
        return self.folder.checkpoint_file.parent / "frames"


def save_result(folder: RunFolder, pipeline: Any, result: DiffusionTrainResult) -> None:
    """pipeline/, and pipeline-averaged/ where an average was kept."""
    pipelines.save(with_unet(pipeline, result.unet), folder.pipeline_folder)
    if result.averaged is None:
        return
    with _averaged(result) as unet:
        pipelines.save(with_unet(pipeline, unet), folder.averaged_folder)


def finish(
    folder: RunFolder,
    command: str,
    config: Schema,
    pipeline: Any,
    result: DiffusionResult,
    film: Film | None,
    record: Recorder,
) -> list[Record]:
    """Write what a finished unlearning run leaves: configuration, pipeline, mask, patch, pictures,
    records and report. Returns the records of the original and of the method."""
    folder.write_config(command, config)
    save_result(folder, pipeline, result)
    UnlearningPatch.between(pipeline.unet, result.unet).save(folder.patch_file)
    if result.mask is not None:
        result.mask.save(folder.mask_file)
    before = record(folder, "original", pipeline.unet, None)
    after = record(folder, result.method, result.unet, result)
    if film is not None:
        name = f"{folder.samples_folder.name}/{result.method}.gif"
        after["samples_steps"] = film.finish(folder.path / name, last=result.settings.steps)
        after["animation"] = name
    folder.write_metrics([*map(step_record, result.history), before, after])
    write_diffusion_report([folder.path], folder.report_file)
    return [before, after]


def shown_rows(labels: Sequence[str], forgotten: int) -> list[int]:
    """Indices of at most MOST_ROWS rows, the forgotten one among them."""
    first = [index for index in range(len(labels)) if index != forgotten][: MOST_ROWS - 1]
    return sorted([*first, forgotten])


@contextmanager
def _averaged(result: DiffusionTrainResult) -> Iterator[Any]:
    """The result's UNet with the averaged weights in it, for as long as it is open."""
    assert result.averaged is not None
    parameters = dict(result.unet.named_parameters())
    raw = {name: parameters[name].detach().clone() for name in result.averaged}
    with torch.no_grad():
        for name, value in result.averaged.items():
            parameters[name].copy_(value)
        try:
            yield result.unet
        finally:
            for name, value in raw.items():
                parameters[name].copy_(value)
