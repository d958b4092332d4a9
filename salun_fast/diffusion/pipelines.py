"""Pipeline folders: which kind they hold, loading them from the disk alone, saving in one move."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salun_fast._extras import need

PURPOSE = "diffusion pipelines"
INDEX = "model_index.json"
CLASS_CONDITIONAL = "ClassConditionalPipeline"


def found_in(path: str | os.PathLike[str]) -> Path:
    """The pipeline folder that ``path`` is, or that the run folder ``path`` holds."""
    given = Path(path)
    for folder in (given, given / "pipeline"):
        if (folder / INDEX).is_file():
            return folder
    raise FileNotFoundError(
        f"{given} holds no pipeline ({INDEX} is missing); pass a folder that save_pretrained of "
        "diffusers wrote, or a finished run folder of train ddpm or unlearn"
    )


def is_class_conditional(folder: Path) -> bool:
    """Whether it holds a ClassConditionalPipeline, and not one of diffusers' own."""
    try:
        return bool(json.loads((folder / INDEX).read_text())["_class_name"] == CLASS_CONDITIONAL)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error}); copy the folder anew") from error


def load(folder: Path, device: torch.device) -> Any:
    """The pipeline in fp32, in eval mode. Nothing is fetched from a hub.

    Raises ValueError where files of the folder are missing or damaged.
    """
    kind = _kind(folder)
    try:
        with quiet():
            pipeline = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # diffusers, transformers and safetensors raise many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"the pipeline in {folder} cannot be loaded: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return cast(pipeline, torch.float32, device)


def cast(pipeline: Any, dtype: torch.dtype, device: torch.device | None = None) -> Any:
    """In place, and in eval mode. torch's own ``to``: that of diffusers warns of modules to be
    kept in fp32 even where there are none."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, device=device, dtype=dtype).eval()
    return pipeline


def save_half(pipeline: Any, folder: Path) -> None:
    """Write or replace ``folder`` with a copy in fp16; ``pipeline`` stays as it is."""
    save(cast(copy.deepcopy(pipeline), torch.float16), folder)


def save(pipeline: Any, folder: Path) -> None:
    """Write or replace ``folder``, which is whole or absent at any moment.

    Raises ValueError for a UNet with PEFT adapters: diffusers would write names that it cannot
    load.
    """
    if getattr(getattr(pipeline, "unet", None), "peft_config", None):
        raise ValueError(
            "the UNet holds PEFT adapters, which save_pretrained writes under names that diffusers "
            "does not load; call pipeline.unet.save_lora_adapter(FOLDER), or fuse and unload them"
        )
    temporary, old = (
        folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.{end}") for end in ("tmp", "old")
    )
    try:
        with quiet():
            pipeline.save_pretrained(temporary)
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.replace(folder)
        raise
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of diffusers and transformers for loading and saving."""
    loggers = [
        need(f"{library}.utils.logging", PURPOSE, extra="diffusion")
        for library in ("diffusers", "transformers")
    ]
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()


def _kind(folder: Path) -> Any:
    if is_class_conditional(folder):
        from salun_fast.diffusion.class_pipeline import ClassConditionalPipeline

        return ClassConditionalPipeline
    return need("diffusers", PURPOSE, extra="diffusion").DiffusionPipeline
