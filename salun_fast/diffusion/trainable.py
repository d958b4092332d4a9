"""Which parameters of a text-conditioned UNet may move."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# As ESD (Gandikota et al. 2023) named them, in diffusers' parameter names.
_NOT_IN_NOXATTN = ("attn2", "time_embedding.", "conv_norm_out.", "conv_out.")
SETS: Mapping[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "xattn": lambda name: "attn2" in name,
    "selfattn": lambda name: "attn1" in name,
    "noxattn": lambda name: not any(part in name for part in _NOT_IN_NOXATTN),
}


def trainable_names(unet: Any, which: str) -> list[str]:
    """Names of the set ``which``, or of all that a regular expression finds.

    Only parameters that require a gradient count: with a PEFT adapter those of the adapter.
    Raises ValueError for an expression that is none, and for a set that is empty.
    """
    open_names = [name for name, p in unet.named_parameters() if p.requires_grad]
    found = [name for name in open_names if _chooser(which)(name)]
    if not found:
        shown = ", ".join(map(repr, open_names[:3])) or "none: call unet.requires_grad_(True)"
        raise ValueError(
            f"trainable={which!r} fits no parameter of the UNet that requires a gradient; those "
            f"begin with {shown}"
        )
    return found


def _chooser(which: str) -> Callable[[str], bool]:
    if which in SETS:
        return SETS[which]
    try:
        pattern = re.compile(which)
    except re.error as error:
        raise ValueError(
            f"trainable must be one of {', '.join(SETS)} or a regular expression, found {which!r} "
            f"({error})"
        ) from error
    return lambda name: pattern.search(name) is not None
