"""What SalUnOptimizer refuses: options, parameters, gradients and masks that cannot work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from salun_fast import bits, names
from salun_fast._fused_step import FUSED_CLASSES
from salun_fast._optimizer_state import AnyMask
from salun_fast._shards import local
from salun_fast.distributed import ShardedMask

_REFUSED = {
    LBFGS: "its line search moves all weights along one direction",
    SparseAdam: "it takes sparse gradients only",
}


HALF_PRECISION = ("nearest", "stochastic", "master")


def check_options(
    optimizer_class: type[Optimizer],
    state: str,
    freeze: str,
    half_precision: str,
    seed: int,
    defaults: dict[str, Any],
) -> None:
    """The arguments of the constructor, beside what the class itself validates."""
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise TypeError(
            f"optimizer_class must be a torch.optim.Optimizer class, found {optimizer_class!r}; "
            "pass the class and its options apart: SalUnOptimizer(params, torch.optim.SGD, lr=0.1)"
        )
    for refused, why in _REFUSED.items():
        if issubclass(optimizer_class, refused):
            raise ValueError(
                f"{refused.__name__} cannot run under a saliency mask: {why}; use SGD or Adam"
            )
    if state not in ("dense", "compact"):
        raise ValueError(f"state must be 'dense' or 'compact', found {state!r}")
    if freeze not in ("exact", "gradient"):
        raise ValueError(f"freeze must be 'exact' or 'gradient', found {freeze!r}")
    if half_precision not in HALF_PRECISION:
        raise ValueError(
            f"half_precision must be one of {', '.join(map(repr, HALF_PRECISION))}, found "
            f"{half_precision!r}"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit 64 bits, found {seed}")
    if half_precision != "nearest" and optimizer_class not in FUSED_CLASSES:
        raise ValueError(
            f"half_precision={half_precision!r} is for SGD, Adam and AdamW, whose steps are ours; "
            f"found {optimizer_class.__name__}, which rounds as it does: use 'nearest'"
        )
    if state == "compact":
        _check_compact(optimizer_class, freeze)
    _check_not_differentiable(defaults)


def _check_compact(optimizer_class: type[Optimizer], freeze: str) -> None:
    if optimizer_class not in FUSED_CLASSES:
        raise ValueError(
            "state='compact' is for SGD, Adam and AdamW, whose steps are ours; found "
            f"{optimizer_class.__name__}, which keeps its own state: use state='dense'"
        )
    if freeze == "gradient":
        raise ValueError(
            "state='compact' keeps no moments for frozen weights, which freeze='gradient' moves by "
            "them: use state='dense', or freeze='exact'"
        )


def check_names(group: dict[str, Any]) -> None:
    """A name for each parameter, or none for all."""
    names_given, params = group.get("param_names"), group["params"]
    if names_given and params and len(names_given) != len(params):
        raise ValueError(
            f"a parameter group has {len(params)} parameters and {len(names_given)} param_names: "
            "expected as many. ZeroRedundancyOptimizer takes parameters out of groups; give it one "
            "group per parameter: [{'params': [p], 'param_names': [n]} for n, p in "
            "model.named_parameters()]"
        )


def check_group(
    group: dict[str, Any],
    named: list[tuple[str, Tensor]],
    half_precision: str,
    *,
    compact: bool,
) -> None:
    """A parameter group and its parameters."""
    _check_not_differentiable(group)
    for name, param in named:
        if param.is_complex() or param.layout != torch.strided:
            kind = param.dtype if param.is_complex() else param.layout
            raise TypeError(
                f"SalUnOptimizer takes real dense parameters, '{name}' is {kind}; leave it out "
                "or optimise torch.view_as_real(parameter)"
            )
        _check_rounding(name, param, half_precision)
        if compact and param.dtype == torch.float64:
            refuse_compact_fp64(name)
        if not bits.is_dense(local(param)):
            raise ValueError(
                f"'{name}' of shape {tuple(param.shape)} and strides {param.stride()} has gaps "
                "or overlaps in memory; make it nn.Parameter(tensor.contiguous())"
            )


def _check_not_differentiable(options: dict[str, Any]) -> None:
    if options.get("differentiable"):
        raise ValueError(
            "differentiable=True is not supported: the masked steps have no backward pass; leave "
            "the option out"
        )


def _check_rounding(name: str, param: Tensor, half_precision: str) -> None:
    if half_precision == "stochastic" and param.dtype == torch.float16:
        raise TypeError(
            f"half_precision='stochastic' rounds bfloat16, '{name}' is float16; use 'master', or "
            "make the parameter bfloat16"
        )
    if half_precision != "nearest" and param.dtype == torch.float64:
        raise TypeError(
            f"half_precision={half_precision!r}: expected float32, float16 or bfloat16 parameters, "
            f"'{name}' is float64; use 'nearest'"
        )


def refuse_compact_fp64(name: str) -> None:
    """torch would step it, which knows no compact state."""
    raise TypeError(
        "state='compact': expected float32, float16 or bfloat16 parameters, "
        f"'{name}' is float64; use state='dense'"
    )


def check_gradient(name: str, grad: Tensor) -> None:
    """TypeError for one that no step can use."""
    if grad.layout != torch.strided:
        raise TypeError(
            f"the gradient of '{name}' is {grad.layout}; expected a dense gradient: build the "
            "layer with sparse=False, or assign param.grad = param.grad.to_dense()"
        )
    if grad.is_complex():
        raise TypeError(f"the gradient of '{name}' is {grad.dtype}; expected a real gradient")


def check_mask(mask: AnyMask, named: list[tuple[str, Tensor]], strict: bool) -> None:
    """That it fits these parameters, and lets some weight of a trainable one move."""
    mask.check(named, strict=strict)
    trainable = {name: param for name, param in named if param.requires_grad}
    if not mask.count or not _selects_some(mask, trainable):
        raise ValueError(
            "the SaliencyMask selects no weight that this optimizer trains: expected a bit "
            f"set for one of {_some(list(trainable))}, found ones only elsewhere, if at all. "
            "Rebuild the mask for these parameters, or pass those it was made for"
        )


def _selects_some(mask: AnyMask, trainable: dict[str, Tensor]) -> bool:
    """Of a sharded mask no process knows all bits: its count must do."""
    if isinstance(mask, ShardedMask):
        return True
    entries = names.match(trainable, mask.words)
    fitting = [e for name, e in entries.items() if mask.shapes[e] == trainable[name].shape]
    return any(bool(mask.words[entry].any()) for entry in fitting)


def _some(listed: list[str], count: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in listed[:count])
    return shown + (f", … ({len(listed)} in all)" if len(listed) > count else "")
