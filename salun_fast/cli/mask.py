"""``mask info|diff|import|export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from salun_fast.cli import show

MaskFile = Annotated[Path, typer.Argument(help="Mask file (.safetensors).", show_default=False)]

mask_app = typer.Typer(no_args_is_help=True, help="Look at masks; convert them.")


@mask_app.command()
def info(mask: MaskFile) -> None:
    """Density, fingerprint and a table of the parameters."""
    from salun_fast.mask import SaliencyMask

    show.mask_facts(SaliencyMask.load(mask))


@mask_app.command()
def diff(first: MaskFile, second: MaskFile) -> None:
    """Overlap of two masks, as a whole and per parameter."""
    from salun_fast.mask import SaliencyMask

    show.mask_difference(SaliencyMask.load(first), SaliencyMask.load(second))


@mask_app.command("import")
def import_mask(
    reference: Annotated[Path, typer.Argument(help="The reference's .pt file.")], mask: MaskFile
) -> None:
    """Convert a mask of the authors' code (.pt); no code in it is executed."""
    from salun_fast.mask import SaliencyMask

    imported = SaliencyMask.import_reference(reference)
    imported.save(mask)
    show.mask_facts(imported)
    show.written(mask)


@mask_app.command("export")
def export_mask(
    mask: MaskFile, reference: Annotated[Path, typer.Argument(help=".pt file to write.")]
) -> None:
    """Write a mask as the authors' code reads it: a dict of int64 tensors of 0 and 1."""
    from salun_fast.mask import SaliencyMask

    SaliencyMask.load(mask).export_reference(reference)
    show.written(reference)
