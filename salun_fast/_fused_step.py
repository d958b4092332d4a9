"""SGD, Adam and AdamW through the masked ops: state as torch names it, one call per device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from salun_fast import ops
from salun_fast._capture import refuse_new_state
from salun_fast._placed_mask import Item, Place
from salun_fast._shards import like, local, part_of

FUSED_CLASSES: tuple[type[torch.optim.Optimizer], ...] = (SGD, Adam, AdamW)
# Per-weight state that the ops keep in fp32, laid out as the parameter; moments may be compact.
MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
STATE_KEYS = (*MOMENTS, "master_param")

Group = dict[str, Any]
State = dict[str, Any]


class HalfPrecision(NamedTuple):
    """How fp16 and bf16 parameters take fp32 results. mode: "nearest", "stochastic", "master"."""

    mode: str = "nearest"
    seed: int = 0

    def options(self, items: Sequence[Item], states: Sequence[State]) -> dict[str, Any]:
        """What the ops are told."""
        if self.mode == "master":
            pairs = zip(items, states, strict=True)
            return {"masters": [_master(state, item) for item, state in pairs]}
        if self.mode == "stochastic":
            return {"origins": [item.origin for item in items], "rounding_seed": self.seed}
        return {}


class Lists(NamedTuple):
    """What one call of an op takes of its parameters."""

    names: Sequence[str]
    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    words: Sequence[Tensor]
    ranks: Sequence[Tensor]  # or none, where all state is dense
    slots: Sequence[Sequence[Tensor]]  # per-weight state, in the order of state_keys()
    steps: Sequence[Tensor]
    half: dict[str, Any]


def fused_step(
    group: Group,
    items: Sequence[Item],
    states: Sequence[State],
    half: HalfPrecision,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of one parameter group; ``states`` are the parameters' entries, filled as needed."""
    for device in {item.param.device: None for item in items}:
        chosen = [i for i, item in enumerate(items) if item.param.device == device]
        lists = _lists(group, [items[i] for i in chosen], [states[i] for i in chosen], half)
        call_op(group, lists, grad_scale, found_inf)


def _lists(group: Group, items: list[Item], states: list[State], half: HalfPrecision) -> Lists:
    slots, steps = ready_state(group, items, states)
    return Lists(
        [item.name for item in items],
        [item.param for item in items],
        [item.grad for item in items],
        [item.words for item in items],
        ranks_of([item.place for item in items]),
        slots,
        steps,
        half.options(items, states),
    )


def ranks_of(places: Sequence[Place | None]) -> list[Tensor]:
    """As the ops take them: one per parameter, or none if no state is compact."""
    known = [place for place in places if place is not None]
    return [place.ranks for place in known] if any(place.is_compact for place in known) else []


def call_op(
    group: Group, lists: Lists, grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """The masked op of the group's class, with the group's options as they are now."""
    (_sgd if "momentum" in group else _adam)(
        group,
        lists,
        ranks=lists.ranks,
        grad_scale=grad_scale,
        found_inf=found_inf,
        names=lists.names,
        **lists.half,
    )


def _sgd(group: Group, lists: Lists, **options: Any) -> None:
    ops.masked_sgd_(
        lists.params,
        lists.grads,
        lists.slots[0] if lists.slots else [],
        lists.steps,
        lists.words,
        lr=group["lr"],
        momentum=float(group["momentum"]),
        dampening=float(group["dampening"]),
        weight_decay=float(group["weight_decay"]),
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        **options,
    )


def _adam(group: Group, lists: Lists, **options: Any) -> None:
    means, squares, *maxima = lists.slots
    beta1, beta2 = group["betas"]
    ops.masked_adam_(
        lists.params,
        lists.grads,
        means,
        squares,
        maxima[0] if maxima else [],
        lists.steps,
        lists.words,
        lr=group["lr"],
        betas=(float(beta1), float(beta2)),
        eps=float(group["eps"]),
        weight_decay=float(group["weight_decay"]),
        decoupled=group["decoupled_weight_decay"],
        maximize=group["maximize"],
        **options,
    )


def ready_state(
    group: Group, items: Sequence[Item], states: Sequence[State]
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Per-weight state in the order of the ops' arguments, and counters; what lacks is made, zeros.

    Gradients are not read. Master copies, which are no zeros, are another matter.
    """
    pairs = list(zip(items, states, strict=True))
    slots = [[_moment(state, key, item) for item, state in pairs] for key in state_keys(group)]
    return slots, _steps(items, states)


def state_keys(group: Group) -> tuple[str, ...]:
    """What the ops keep per weight, for the options of the group."""
    if "momentum" in group:
        return ("momentum_buffer",) if float(group["momentum"]) != 0 else ()
    moments = ("exp_avg", "exp_avg_sq")
    return (*moments, "max_exp_avg_sq") if group["amsgrad"] else moments


def _steps(items: Sequence[Item], states: Sequence[State]) -> list[Tensor]:
    steps = []
    for item, state in zip(items, states, strict=True):
        step: Tensor | None = state.get("step")
        if step is None or step.device != item.param.device:
            refuse_new_state(item.name)
            step = _zero_step(item.param) if step is None else step.to(item.param.device)
            state["step"] = step
        steps.append(step)
    return steps


def _zero_step(param: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=param.device)


def _moment(state: State, key: str, item: Item) -> Tensor:
    """What is here of state tensor ``key``, created as zeros."""
    if state.get(key) is None:
        refuse_new_state(item.name)
        state[key] = _zeros(item)
        if key == "momentum_buffer":
            # The op copies the gradient into the buffer at step 0, as torch into a new one.
            state["step"] = _zero_step(item.param)
    return _compact_slot(state, key, item) if item.is_compact else _slot(state, key, item)


def _zeros(item: Item) -> Tensor:
    if item.place is not None and item.is_compact:
        return torch.zeros(item.place.selected, dtype=torch.float32, device=item.param.device)
    return torch.zeros_like(item.owner, dtype=torch.float32)


def _compact_slot(state: State, key: str, item: Item) -> Tensor:
    """A kernel on a GPU takes the size on trust."""
    assert item.place is not None
    vector: Tensor = state[key]
    if vector.shape != (item.place.selected,):
        raise ValueError(
            f"'{key}' of '{item.name}' has shape {tuple(vector.shape)}, and state='compact' keeps "
            f"the {item.place.selected} values of its selected weights: load dense state by "
            "load_state_dict(), which compresses it"
        )
    if vector.device != item.param.device:
        refuse_new_state(item.name)
        vector = state[key] = vector.to(item.param.device)
    return vector


def _slot(state: State, key: str, item: Item) -> Tensor:
    """What is here of a dense state tensor: laid out anew where its parameter was, or moved. It is
    sharded as its parameter."""
    param = item.param
    block = local(state[key])
    if block.stride() != param.stride() or block.device != param.device:
        refuse_new_state(item.name)
        block = laid_out(block, param)
        state[key] = like(block, item.owner)
    return block


def _master(state: State, item: Item) -> Tensor:
    """The fp32 copy that a parameter of half precision is stepped by; empty for fp32."""
    if item.param.dtype == torch.float32:
        return item.param.new_empty(0)
    if state.get("master_param") is None:
        refuse_new_state(item.name)
        state["master_param"] = like(laid_out(item.param, item.param), item.owner)
    return _slot(state, "master_param", item)


def laid_out(tensor: Tensor, param: Tensor) -> Tensor:
    """A fresh fp32 copy with the layout and on the device of ``param``."""
    return torch.empty_like(param, dtype=torch.float32).copy_(tensor)


def adopt_state(state: State, saved: State, param: Tensor) -> None:
    """Replace loaded state, which torch casts to the parameter's dtype, by the saved values.

    State stays fp32 whatever the parameter's dtype. SGD checkpoints of torch have no ``step``: a
    momentum buffer that is there has been written at least once. Whole state is cut to the block
    of a sharded parameter.
    """
    for key in STATE_KEYS:
        if isinstance(saved.get(key), Tensor):
            state[key] = like(laid_out(part_of(saved[key], param), local(param)), param)
        else:
            state.pop(key, None)
    if "step" in saved:
        state["step"] = _zero_step(param).fill_(float(saved["step"]))
    elif "momentum_buffer" in state:
        state["step"] = _zero_step(param).fill_(1.0)
