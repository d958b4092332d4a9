"""Which training images are to be forgotten."""

from __future__ import annotations

import torch
from torch import Tensor


def forget_split(
    labels: Tensor,
    *,
    fraction: float | None = None,
    forget_class: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Sorted int64 indices (forget, retain) that partition ``range(len(labels))``.

    ``fraction``: that share of all images, rounded down, drawn without replacement from ``seed``;
    or ``forget_class``: every image of that class. Exactly one of the two. Both parts come from
    the one training split (the authors' code marks forget images on another split than the one
    the model was trained on, so that some were never seen).
    """
    if (fraction is None) == (forget_class is None):
        raise ValueError(
            "give exactly one of fraction (random forgetting) and forget_class (class-wise), "
            f"found fraction={fraction}, forget_class={forget_class}"
        )
    marked = torch.zeros(len(labels), dtype=torch.bool)
    if forget_class is not None:
        marked |= labels.cpu() == forget_class
        if not marked.any():
            raise ValueError(
                f"forget_class {forget_class} has no images; the classes present are "
                f"{sorted(set(labels.tolist()))}"
            )
    else:
        assert fraction is not None
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must lie strictly between 0 and 1, found {fraction}")
        count = int(len(labels) * fraction)
        if count == 0:
            raise ValueError(
                f"fraction {fraction} of {len(labels)} images is less than one image; "
                "choose a larger fraction"
            )
        generator = torch.Generator().manual_seed(seed)
        marked[torch.randperm(len(labels), generator=generator)[:count]] = True
    return marked.nonzero().flatten(), (~marked).nonzero().flatten()
