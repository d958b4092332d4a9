"""``patch info|apply|remove``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salun_fast.cli import show

if TYPE_CHECKING:
    from salun_fast.patch import UnlearningPatch

PatchFile = Annotated[
    Path, typer.Argument(help="Unlearning patch (.safetensors).", show_default=False)
]
Model = Annotated[
    Path,
    typer.Argument(
        help="Weights file (.safetensors, .pt), or a diffusers folder: of a pipeline its unet.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Argument(help="What to write, of the same form; must not exist.", show_default=False),
]

patch_app = typer.Typer(
    no_args_is_help=True, help="Look at unlearning patches; apply and remove them."
)


@patch_app.command()
def info(patch: PatchFile) -> None:
    """How much the patch changes, and a table of the parameters."""
    from salun_fast.patch import UnlearningPatch

    found = UnlearningPatch.load(patch)
    _facts(found, patch.stat().st_size)
    _table(found)


@patch_app.command()
def apply(patch: PatchFile, model: Model, out: Out) -> None:
    """Write the unlearned model: MODEL, the original, with the patch applied."""
    from salun_fast import patched_files
    from salun_fast.patch import UnlearningPatch

    patched_files.rewrite(model, out, UnlearningPatch.load(patch).apply_)
    show.written(out)


@patch_app.command()
def remove(patch: PatchFile, model: Model, out: Out) -> None:
    """Write the original model: MODEL, the unlearned one, with the patch removed."""
    from salun_fast import patched_files
    from salun_fast.patch import UnlearningPatch

    patched_files.rewrite(model, out, UnlearningPatch.load(patch).remove_)
    show.written(out)


def _facts(patch: UnlearningPatch, size: int) -> None:
    weights = _share(patch.count, patch.numel)
    of_model = _share(size, patch.model_nbytes)
    show.facts(
        "Unlearning patch",
        {
            "changed weights": f"{patch.count:,} of the model's {patch.numel:,} ({weights})",
            "parameters": f"{len(patch)} with a change",
            "file size": f"{size:,} bytes, {of_model} of the model's {patch.model_nbytes:,}",
        },
    )


def _table(patch: UnlearningPatch) -> None:
    rows = [
        [
            " = ".join(change.names),
            " × ".join(map(str, change.shape)) or "scalar",
            str(change.dtype).removeprefix("torch."),
            f"{change.count:,}",
            _share(change.count, change.numel),
        ]
        for change in patch.changes.values()
    ]
    show.table("Parameters", ["name", "shape", "dtype", "changed", "share"], rows)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.2f} %"
