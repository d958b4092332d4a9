"""What SalUnOptimizer adds to torch's ``state_dict``: the mask, and its fingerprint per group.

"state" and "param_groups" keep torch's names and shapes, so that checkpoints move both ways. All
values are tensors and plain containers: ``torch.load(weights_only=True)`` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from salun_fast.distributed import ShardedMask
from salun_fast.mask import SaliencyMask

AnyMask = SaliencyMask | ShardedMask

MASK = "salun_mask"
FINGERPRINT = "mask_fingerprint"
_OF = " of "


def mask_to_state(mask: SaliencyMask) -> dict[str, Any]:
    """Words and shapes of a mask by parameter name."""
    return {
        "words": dict(mask.words),
        "shapes": dict(mask.shapes),
        "score": mask.score,
        "fingerprint": mask.fingerprint,
    }


def mask_from_state(saved: dict[str, Any]) -> SaliencyMask:
    """Inverse of :func:`mask_to_state`; ValueError where the fingerprint does not fit the bits."""
    mask = SaliencyMask.from_words(saved["words"], saved["shapes"], score=saved["score"])
    if mask.fingerprint != saved["fingerprint"]:
        raise ValueError(
            f"the checkpoint's '{MASK}' was altered: its fingerprint is {mask.fingerprint}, "
            f"{saved['fingerprint']} was saved; load another checkpoint"
        )
    return mask


def fingerprint_of(mask: AnyMask | None) -> str:
    """What a checkpoint's groups say of the mask they were written under; "" without one. A
    sharded mask is known by its totals: its bits lie on many processes."""
    if mask is None:
        return ""
    return mask.fingerprint if isinstance(mask, SaliencyMask) else _totals(mask)


def _totals(mask: AnyMask) -> str:
    return f"{mask.count}{_OF}{mask.numel}"


def checked_state(
    incoming: dict[str, Any],
    named: Sequence[Sequence[tuple[str, Tensor]]],
    keys: Sequence[str],
    current: AnyMask | None,
) -> tuple[AnyMask | None, dict[str, Any]]:
    """Check a checkpoint before anything is loaded.

    ``named``: the parameters per group; ``keys``: state that must have their shapes. Returns the
    mask that is to be in force, and the checkpoint as torch's base class takes it.
    """
    groups = incoming["param_groups"]
    mask = mask_from_state(incoming[MASK]) if MASK in incoming else current
    _check_fingerprints(groups, mask)
    _check_shapes(incoming["state"], groups, named, keys)
    cleaned = {key: value for key, value in incoming.items() if key != MASK}
    cleaned["param_groups"] = [
        {key: value for key, value in group.items() if key != FINGERPRINT} for group in groups
    ]
    return mask, cleaned


def _check_fingerprints(groups: Sequence[dict[str, Any]], mask: AnyMask | None) -> None:
    for group in groups:
        saved = group.get(FINGERPRINT, "")
        if saved and not _may_be(saved, mask):
            raise ValueError(
                f"the checkpoint was written under mask {saved}, this optimizer's mask is "
                f"{fingerprint_of(mask) or 'none'}. Call set_mask() with that mask first "
                f"(MaskState in a distributed checkpoint), or delete '{FINGERPRINT}' from the "
                "checkpoint's groups to go on without it"
            )


def _may_be(saved: str, mask: AnyMask | None) -> bool:
    """Whether this is the mask of that fingerprint; of a sharded one as far as totals tell."""
    if mask is None:
        return False
    if _OF in saved:
        return saved == _totals(mask)
    return isinstance(mask, ShardedMask) or saved == mask.fingerprint


def _check_shapes(
    state: dict[Any, Any],
    groups: Sequence[dict[str, Any]],
    named: Sequence[Sequence[tuple[str, Tensor]]],
    keys: Sequence[str],
) -> None:
    """torch loads state of any shape; a step would fail later, or read the wrong element."""
    for group, pairs in zip(groups, named, strict=False):
        for index, (name, param) in zip(group["params"], pairs, strict=False):
            for key in keys:
                value = state.get(index, {}).get(key)
                if isinstance(value, Tensor) and value.shape != param.shape:
                    raise ValueError(
                        f"the checkpoint does not fit: '{key}' of '{name}' has shape "
                        f"{tuple(value.shape)}, the parameter {tuple(param.shape)}; load the "
                        "checkpoint of the same model, with its parameters in the same order"
                    )
