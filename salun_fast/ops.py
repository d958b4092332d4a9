"""The one table of ops: per op its schema, its typed wrapper with worded checks, and its fake.

In the order of ``csrc/ops.h``. Kernels register under the same names (``csrc/cpu/register.cpp``);
``reference.py`` holds the plain-torch twins, registered for every backend without a kernel.
"Words" are packed masks (``bits.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from salun_fast import _load, bits, reference

_NAMESPACE = "salun_fast"
RULES = ("sum", "abs", "square")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Names = Sequence[str] | None


# --- accumulate_ ----------------------------------------------------------------------------------


def accumulate_(
    scores: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    rule: str = "sum",
    zero_grads: bool = False,
    names: Names = None,
) -> None:
    """Add gradients into scores: ``scores[i] += g``, ``|g|`` or ``g²`` (SalUn, eq. 4).

    ``scores``: fp32, dense; written. ``grads``: same shapes, fp32, fp16 or bf16; set to 0 in the
    same pass with ``zero_grads``. Raises ValueError or TypeError naming the tensor; nothing is
    written then.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, found {rule!r}")
    if not _pairs("scores", scores, "grads", grads):
        return
    _check_all("scores", scores, names, dtypes=(torch.float32,))
    aligned = _like(scores, grads, "grads", names)
    torch.ops.salun_fast.accumulate_(scores, aligned, RULES.index(rule), zero_grads)
    _written(scores)
    if zero_grads:
        _written(aligned)
        for grad, copy in zip(grads, aligned, strict=True):
            if copy is not grad:
                grad.zero_()


def _accumulate_fake(
    scores: list[Tensor], grads: list[Tensor], rule: int, zero_grads: bool
) -> None:
    return None


# --- select and its counting form -----------------------------------------------------------------


def select(
    scores: Sequence[Tensor],
    k: int,
    *,
    largest: bool = True,
    allow_nonfinite: bool = False,
    names: Names = None,
) -> tuple[list[Tensor], Tensor]:
    """Exact global top-k of ``|score|`` as packed masks (SalUn, section 4; DESIGN "Ops").

    Returns the words of each tensor in row-major order of its elements, with exactly ``k`` bits in
    all, and the k-th ``|score|`` as a 0-dim fp32 tensor (inf when ``k`` is 0). Ties go to the
    lowest flat index in list order. NaN and infinity raise ValueError naming the tensor; with
    ``allow_nonfinite`` infinity is the most and NaN the least salient value.
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= k <= total:
        raise ValueError(f"k must lie in 0..{total} (the number of scores), found {k}")
    _check_all("scores", scores, names, dense=False)
    if not scores:
        return [], torch.tensor(float("inf") if largest else float("-inf"))
    masks, threshold = _naming_nonfinite(
        "scores",
        scores,
        names,
        lambda: torch.ops.salun_fast.select(scores, k, largest, allow_nonfinite),
    )
    return list(masks), threshold


def _select_fake(
    scores: list[Tensor], k: int, largest: bool, allow_nonfinite: bool
) -> tuple[list[Tensor], Tensor]:
    return _empty_words(scores), scores[0].new_empty((), dtype=torch.float32)


def select_histogram(
    scores: Sequence[Tensor], prefix: int, level: int, *, largest: bool = True
) -> Tensor:
    """Histogram of one digit of the ordered keys, for selection over several processes.

    Level 0 counts the upper 11 bits of all keys; level 1 the next 11 of the keys whose upper 11
    are ``prefix``; level 2 the last 10 of the keys whose upper 22 are ``prefix``. Returns int64
    [2048]: 16 KiB to all-reduce per level.
    """
    if level not in (0, 1, 2):
        raise ValueError(f"level must be 0, 1 or 2, found {level}")
    _check_all("scores", scores, None, dense=False)
    if not scores:
        return torch.zeros(reference.HISTOGRAM_BINS, dtype=torch.int64)
    counts: Tensor = torch.ops.salun_fast.select_histogram(scores, prefix, level, largest)
    return counts


def _select_histogram_fake(scores: list[Tensor], prefix: int, level: int, largest: bool) -> Tensor:
    return scores[0].new_empty(reference.HISTOGRAM_BINS, dtype=torch.int64)


def select_pack(
    scores: Sequence[Tensor], threshold_key: int, ties: int, *, largest: bool = True
) -> list[Tensor]:
    """Words of all keys above ``threshold_key`` and of the first ``ties`` keys equal to it."""
    _check_all("scores", scores, None, dense=False)
    if not scores:
        return []
    return list(torch.ops.salun_fast.select_pack(scores, threshold_key, ties, largest))


def _select_pack_fake(
    scores: list[Tensor], threshold: int, ties: int, largest: bool
) -> list[Tensor]:
    return _empty_words(scores)


# --- masked_sgd_ ----------------------------------------------------------------------------------


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    masters: Sequence[Tensor] = (),
    ranks: Sequence[Tensor] = (),
    origins: Sequence[int] = (),
    rounding_seed: int | None = None,
    names: Names = None,
) -> None:
    """One SGD step (``torch.optim.SGD``'s algorithm) on the weights whose bit is 1.

    ``params``: fp32, fp16 or bf16, dense; written. ``grads``: same shapes, only read.
    ``momentum_buffers``: fp32, laid out as the parameters, or [] without momentum; written.
    ``steps``: fp32 0-dim, how many steps each parameter has taken; written. ``masks``: words in
    memory order of the parameter, or an empty tensor where every weight moves. ``grad_scale``
    divides the gradients; nothing at all changes where ``found_inf`` is not 0. All lists are on
    one device. ``lr``, ``grad_scale`` and ``found_inf`` may be there too: on a GPU nothing then
    waits for their values; what is on the CPU is read there, at the call.
    A weight whose bit is 0 keeps its bytes, and its momentum too.

    ``masters``: fp32 copies of fp16 and bf16 parameters, laid out as they are, or [] ; an empty
    tensor where a parameter has none. The step then updates the copy, written, and the parameter
    becomes its nearest rounding. ``rounding_seed``: round bf16 parameters stochastically instead,
    by bits that depend on the seed, the parameter's step and the flat index of each weight alone:
    ``origins[i]`` plus its position in memory.

    ``ranks``: ``bits.ranks(words, numel)`` of parameters with compact state, or []; an empty tensor
    where state is dense. Compact state is 1-D, of the selected weights alone in memory order
    (``bits.compress``); the step gives the bits of the dense one.
    """
    if not _pairs("params", params, "grads", grads):
        return
    buffers = momentum_buffers if momentum != 0 else []
    states = [("momentum_buffers", buffers)] if momentum != 0 else []
    rest = (
        buffers, steps, masks, masters, ranks, _rate(lr, params), momentum, dampening,
        weight_decay, nesterov, maximize, _optional(grad_scale, params),
        _optional(found_inf, params), origins, rounding_seed,
    )  # fmt: skip
    _take_step(
        lambda aligned: torch.ops.salun_fast.masked_sgd_(params, aligned, *rest),
        params, grads, states, steps, masks, names, masters, ranks, rounding_seed,
    )  # fmt: skip
    _written(params, buffers, masters)


def _masked_sgd_fake(params: list[Tensor], *rest: Any) -> None:
    _refuse_several_devices(params, *rest)


# --- masked_adam_ ---------------------------------------------------------------------------------


def masked_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    masters: Sequence[Tensor] = (),
    ranks: Sequence[Tensor] = (),
    origins: Sequence[int] = (),
    rounding_seed: int | None = None,
    names: Names = None,
) -> None:
    """One Adam step (``decoupled=True``: AdamW) on the weights whose bit is 1.

    ``exp_avgs``, ``exp_avg_sqs`` and, for amsgrad, ``max_exp_avg_sqs`` ([] otherwise): fp32, laid
    out as the parameters, or compact; written. All else as in :func:`masked_sgd_`.
    """
    if not _pairs("params", params, "grads", grads):
        return
    moments = [("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs)]
    if max_exp_avg_sqs:
        moments.append(("max_exp_avg_sqs", max_exp_avg_sqs))
    rest = (
        exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, masks, masters, ranks, _rate(lr, params),
        betas[0], betas[1], eps, weight_decay, decoupled, maximize, _optional(grad_scale, params),
        _optional(found_inf, params), origins, rounding_seed,
    )  # fmt: skip
    _take_step(
        lambda aligned: torch.ops.salun_fast.masked_adam_(params, aligned, *rest),
        params, grads, moments, steps, masks, names, masters, ranks, rounding_seed,
    )  # fmt: skip
    _written(params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, masters)


def _masked_adam_fake(params: list[Tensor], *rest: Any) -> None:
    _refuse_several_devices(params, *rest)


# --- soft_threshold_ ------------------------------------------------------------------------------


def soft_threshold_(
    params: Sequence[Tensor], anchors: Sequence[Tensor], k: int, *, names: Names = None
) -> Tensor:
    """SalUn-soft's proximal step: pull ``params`` towards ``anchors`` (paper, appendix).

    With Δ = θ - θ_ref over all tensors and τ the k-th smallest |Δ|: θ becomes θ_ref, to the byte,
    where |Δ| <= τ, and θ_ref + sign(Δ)(|Δ| - τ) elsewhere. ``params`` are written, ``anchors``
    have their shapes and dtypes. ``k`` = 0 changes nothing. Returns τ (0-dim fp32). NaN or infinity
    in Δ raises ValueError naming the tensor; nothing is written then.
    """
    total = sum(param.numel() for param in params)
    if not 0 <= k <= total:
        raise ValueError(f"k must lie in 0..{total} (the number of weights), found {k}")
    if not _pairs("params", params, "anchors", anchors):
        return torch.tensor(float("-inf"))
    _check_all("params", params, names)
    for i, (param, anchor) in enumerate(zip(params, anchors, strict=True)):
        if anchor.dtype != param.dtype:
            raise TypeError(
                f"anchors: {_name(i, names)} is {anchor.dtype}, its parameter {param.dtype}; "
                "keep the anchor as param.detach().clone()"
            )
    aligned = _like(params, anchors, "anchors", names)
    tau: Tensor = _naming_nonfinite(
        "params or anchors",
        [*params, *aligned],
        [*names, *names] if names else None,
        lambda: torch.ops.salun_fast.soft_threshold_(params, aligned, k),
    )
    _written(params)
    return tau


def _soft_threshold_fake(params: list[Tensor], anchors: list[Tensor], k: int) -> Tensor:
    return params[0].new_empty((), dtype=torch.float32)


# --- per_sample_ ----------------------------------------------------------------------------------


def per_sample_(
    scores: Tensor,
    grads: Tensor,
    inputs: Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    scale: float = 1.0,
) -> None:
    """Add ``scale`` Σ_i |∇_W ℓ_i| of a convolution's weight W, over the samples i of a batch.

    ``scores``: fp32 [outputs, inputs / groups, kernel height, kernel width], dense; written.
    ``grads``: gradients of the outputs [samples, outputs, height, width]. ``inputs``: [samples,
    inputs, height, width]. Both fp32, fp16 or bf16, of any strides. A linear layer over a
    sequence is one with a window of one point: height 1, width the length. No gradient of a sample
    is ever kept. Same bits for any number of threads. Raises ValueError or TypeError; nothing is
    written then.
    """
    _check_all("scores", [scores], None, dtypes=(torch.float32,))
    for role, tensor in (("grads", grads), ("inputs", inputs)):
        _check_all(role, [tensor], None, dense=False)
        _check_beside(role, 0, tensor, scores, None)
        if tensor.dim() != 4:
            raise ValueError(
                f"{role}: expected [samples, channels, height, width], found shape "
                f"{tuple(tensor.shape)}"
            )
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, scores.shape[2:], strict=True)]
    sides = zip(inputs.shape[2:], padding, reach, stride, strict=True)
    places = tuple((size + 2 * pad - span) // step + 1 for size, pad, span, step in sides)
    expected = (inputs.shape[0], scores.shape[0], *places)
    if tuple(grads.shape) != expected or inputs.shape[1] != scores.shape[1] * groups:
        raise ValueError(
            f"grads and inputs: found shapes {tuple(grads.shape)} and {tuple(inputs.shape)} for "
            f"scores of shape {tuple(scores.shape)} and {groups} groups; expected "
            f"{expected} gradients of {scores.shape[1] * groups} input channels"
        )
    torch.ops.salun_fast.per_sample_(
        scores, grads, inputs, list(stride), list(padding), list(dilation), groups, scale
    )
    _written([scores])


def _per_sample_fake(scores: Tensor, *rest: Any) -> None:
    return None


# --- the table ------------------------------------------------------------------------------------

# name: (schema, fake, reference). Bits and states are tied to positions in memory, so a compiler
# must hand the tensors over exactly as they lie.
TABLE: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "accumulate_": (
        "(Tensor(a!)[] scores, Tensor(b!)[] grads, int rule, bool zero_grads) -> ()",
        _accumulate_fake,
        reference.accumulate_,
    ),
    "select": (
        "(Tensor[] scores, int k, bool largest, bool allow_nonfinite) -> (Tensor[], Tensor)",
        _select_fake,
        reference.select,
    ),
    "select_histogram": (
        "(Tensor[] scores, int prefix, int level, bool largest) -> Tensor",
        _select_histogram_fake,
        reference.select_histogram,
    ),
    "select_pack": (
        "(Tensor[] scores, int threshold, int ties, bool largest) -> Tensor[]",
        _select_pack_fake,
        reference.select_pack,
    ),
    "masked_sgd_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] steps, "
        "Tensor[] masks, Tensor(d!)[] masters, Tensor[] ranks, Tensor lr, float momentum, "
        "float dampening, float weight_decay, bool nesterov, bool maximize, Tensor? grad_scale, "
        "Tensor? found_inf, int[] origins, int? rounding_seed) -> ()",
        _masked_sgd_fake,
        reference.masked_sgd_,
    ),
    "masked_adam_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
        "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor[] masks, Tensor(f!)[] masters, "
        "Tensor[] ranks, Tensor lr, float beta1, float beta2, float eps, float weight_decay, "
        "bool decoupled, bool maximize, Tensor? grad_scale, Tensor? found_inf, int[] origins, "
        "int? rounding_seed) -> ()",
        _masked_adam_fake,
        reference.masked_adam_,
    ),
    "soft_threshold_": (
        "(Tensor(a!)[] params, Tensor[] anchors, int k) -> Tensor",
        _soft_threshold_fake,
        reference.soft_threshold_,
    ),
    "per_sample_": (
        "(Tensor(a!) scores, Tensor grads, Tensor inputs, int[] stride, int[] padding, "
        "int[] dilation, int groups, float scale) -> ()",
        _per_sample_fake,
        reference.per_sample_,
    ),
}
_HOST_DECISION = ("select", "select_histogram", "select_pack", "soft_threshold_")


def _register() -> None:
    for name, (schema, fake, twin) in TABLE.items():
        tags = [torch.Tag.needs_exact_strides]
        if name in _HOST_DECISION:
            tags.append(torch.Tag.cudagraph_unsafe)
        qualified = f"{_NAMESPACE}::{name}"
        torch.library.define(qualified, schema, tags=tuple(tags))
        torch.library.register_fake(qualified, fake)
        torch.library.impl(qualified, "CompositeExplicitAutograd", _announced(name, twin))


def _announced(name: str, twin: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as a registered kernel: never reached unannounced, on CUDA only on demand."""

    def kernel(first: Tensor | list[Tensor], *rest: Any) -> Any:
        device = (first if isinstance(first, Tensor) else first[0]).device.type
        if device == "cpu" and _load.has_kernels(device):
            raise RuntimeError(
                f"salun_fast::{name} has a kernel for {device}, and one of its tensors leads "
                "elsewhere: expected strided tensors of one device"
            )
        _load.admit_reference(name, device)
        return twin(first, *rest)

    return kernel


# --- checks, worded once --------------------------------------------------------------------------


def _name(index: int, names: Names) -> str:
    return f"'{names[index]}'" if names else f"tensor {index}"


def _pairs(left: str, lefts: Sequence[Tensor], right: str, rights: Sequence[Tensor]) -> bool:
    """Check that two lists pair up; False where there is nothing to do."""
    if len(lefts) != len(rights):
        raise ValueError(f"{left} and {right} must pair up, found {len(lefts)} and {len(rights)}")
    return len(lefts) > 0


def _check_all(
    role: str,
    tensors: Sequence[Tensor],
    names: Names,
    *,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    dense: bool = True,
) -> None:
    """Dtype, one device and layout of a list."""
    for i, tensor in enumerate(tensors):
        if tensor.layout != torch.strided:
            raise TypeError(
                f"{role}: {_name(i, names)} is {tensor.layout}; expected a strided tensor, "
                "call .to_dense()"
            )
        if tensor.dtype not in dtypes:
            expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(f"{role}: {_name(i, names)} is {tensor.dtype}; expected {expected}")
        if tensor.device != tensors[0].device:
            raise ValueError(
                f"{role}: {_name(i, names)} is on {tensor.device}, {_name(0, names)} on "
                f"{tensors[0].device}; call once per device"
            )
        if dense and not bits.is_dense(tensor):
            raise ValueError(
                f"{role}: {_name(i, names)} of shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()} has gaps or overlaps in memory; call .contiguous()"
            )


def _like(
    models: Sequence[Tensor], tensors: Sequence[Tensor], role: str, names: Names
) -> list[Tensor]:
    """``tensors`` laid out as ``models``; a copy where the strides differ."""
    _check_all(role, tensors, names, dense=False)
    aligned = []
    for i, (model, tensor) in enumerate(zip(models, tensors, strict=True)):
        if tensor.shape != model.shape:
            raise ValueError(
                f"{role}: {_name(i, names)} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(model.shape)}"
            )
        _check_beside(role, i, tensor, model, names)
        if not _same_layout(model, tensor):
            tensor = torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)
        aligned.append(tensor)
    return aligned


def _check_beside(role: str, index: int, tensor: Tensor, model: Tensor, names: Names) -> None:
    """A kernel reads the pointers it is given: all must be of one device."""
    if tensor.device != model.device:
        raise ValueError(
            f"{role}: {_name(index, names)} is on {tensor.device}, expected {model.device}; move "
            "it there by .to()"
        )


def _same_layout(model: Tensor, tensor: Tensor) -> bool:
    """Equal strides, where they matter."""
    return tensor.stride() == model.stride() or all(
        size == 1 or mine == theirs
        for size, mine, theirs in zip(model.shape, model.stride(), tensor.stride(), strict=True)
    )


def _take_step(
    call: Callable[[Sequence[Tensor]], None],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[tuple[str, Sequence[Tensor]]],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor],
    names: Names,
    masters: Sequence[Tensor] = (),
    ranks: Sequence[Tensor] = (),
    rounding_seed: int | None = None,
) -> None:
    """Run ``call`` on the gradients, laid out as the parameters.

    A kernel refuses what it cannot take before it writes, and so do the reference and the fake that
    a lone sparse tensor, or one on another device, leads to. So every tensor is looked at, and the
    misfit named, only after a refusal: with hundreds of parameters that look costs more than the
    step.
    """
    refusal: RuntimeError | None = None
    if not torch.compiler.is_compiling() and _load.has_kernels(params[0].device.type):
        try:
            return call(grads)
        except RuntimeError as error:
            refusal = error
    aligned = _check_step(params, grads, states, steps, masks, ranks, names)
    _check_half_precision(params, masters, names, rounding_seed)
    if refusal is not None and all(a is b for a, b in zip(aligned, grads, strict=True)):
        raise refusal
    return call(aligned)


def _check_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[tuple[str, Sequence[Tensor]]],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor],
    ranks: Sequence[Tensor],
    names: Names,
) -> list[Tensor]:
    """All that both steps ask of their lists; returns the gradients laid out as the parameters."""
    _check_all("params", params, names)
    _pairs("params", params, "steps", steps)
    for i, step in enumerate(steps):
        if step.dtype != torch.float32 or step.dim() != 0:
            raise TypeError(
                f"steps: {_name(i, names)} is {step.dtype} of shape {tuple(step.shape)}; expected "
                "a 0-dim float32 tensor"
            )
        _check_beside("steps", i, step, params[i], names)
    _pairs("params", params, "masks", masks)
    for i, (param, words) in enumerate(zip(params, masks, strict=True)):
        expected = bits.word_count(param.numel())
        if words.dtype != torch.int32 or words.numel() not in (0, expected):
            raise ValueError(
                f"masks: {_name(i, names)} has {words.numel()} {words.dtype} words; expected "
                f"{expected} int32 words for {param.numel()} weights, or none to move them all"
            )
        if words.numel():
            _check_beside("masks", i, words, param, names)
    _check_ranks(params, masks, ranks, names)
    for role, state in states:
        _check_state(role, state, params, ranks, names)
    return _like(params, grads, "grads", names)


def _check_ranks(
    params: Sequence[Tensor], masks: Sequence[Tensor], ranks: Sequence[Tensor], names: Names
) -> None:
    if not ranks:
        return
    _pairs("params", params, "ranks", ranks)
    for i, (param, words, own) in enumerate(zip(params, masks, ranks, strict=True)):
        if not own.numel():
            continue
        expected = (param.numel() + bits.RANK_RUN - 1) // bits.RANK_RUN + 1
        if own.dtype != torch.int64 or own.shape != (expected,):
            raise ValueError(
                f"ranks: {_name(i, names)} is {own.dtype} of shape {tuple(own.shape)}; expected "
                f"int64 ({expected},): bits.ranks(words, param.numel())"
            )
        if param.numel() and not words.numel():
            raise ValueError(
                f"ranks: {_name(i, names)} has ranks but no words; compact state needs a mask, "
                "keep dense state and an empty tensor here where every weight moves"
            )
        _check_beside("ranks", i, own, param, names)
        if _is_readable(own) and not torch.equal(own, bits.ranks(words, param.numel())):
            raise ValueError(
                f"ranks: {_name(i, names)} does not count the bits of its mask; after a change of "
                "the mask make it anew by bits.ranks(words, param.numel()), and the state with it"
            )


def _check_state(
    role: str,
    state: Sequence[Tensor],
    params: Sequence[Tensor],
    ranks: Sequence[Tensor],
    names: Names,
) -> None:
    _pairs("params", params, role, state)
    _check_all(role, state, names, dtypes=(torch.float32,))
    for i, (param, tensor) in enumerate(zip(params, state, strict=True)):
        _check_beside(role, i, tensor, param, names)
        if ranks and ranks[i].numel():
            if _is_readable(ranks[i]) and tensor.shape != (int(ranks[i][-1]),):
                raise ValueError(
                    f"{role}: {_name(i, names)} has shape {tuple(tensor.shape)}; its mask has "
                    f"{int(ranks[i][-1])} ones, and compact state is a vector of as many: "
                    "bits.compress(dense, words), or pass no ranks for dense state"
                )
        elif tensor.shape != param.shape or not _same_layout(param, tensor):
            raise ValueError(
                f"{role}: {_name(i, names)} has shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()}, its parameter {tuple(param.shape)} and {param.stride()}; "
                "create it by torch.zeros_like(param, dtype=torch.float32)"
            )


def _is_readable(tensor: Tensor) -> bool:
    """Whether values may be looked at: not while a compiler traces shapes."""
    return not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


def _check_half_precision(
    params: Sequence[Tensor], masters: Sequence[Tensor], names: Names, rounding_seed: int | None
) -> None:
    if rounding_seed is not None:
        for i, param in enumerate(params):
            if param.dtype == torch.float16:
                raise TypeError(
                    f"params: {_name(i, names)} is float16; stochastic rounding is for bfloat16, "
                    "keep a master copy instead"
                )
    for i, (master, param) in enumerate(zip(masters, params, strict=bool(masters))):
        if not master.numel():
            continue
        expected = param.dtype != torch.float32 and master.dtype == torch.float32
        if not expected or master.shape != param.shape or not _same_layout(param, master):
            raise ValueError(
                f"masters: {_name(i, names)} is {master.dtype} of shape {tuple(master.shape)} and "
                f"strides {master.stride()}; expected float32 laid out as its fp16 or bf16 "
                "parameter: torch.empty_like(param, dtype=torch.float32).copy_(param)"
            )
        _check_beside("masters", i, master, param, names)


def _rate(value: float | Tensor, params: Sequence[Tensor]) -> Tensor:
    """A learning rate as the 0-dim tensor that the ops take; fp64 keeps a Python float exact."""
    if isinstance(value, Tensor):
        return _scalar(value, params)
    return torch.tensor(value, dtype=torch.float64)


def _scalar(value: Tensor, params: Sequence[Tensor]) -> Tensor:
    """A 0-dim tensor where the op on ``params`` can read it: on their device, or on the CPU."""
    return value if value.device.type == "cpu" else value.to(params[0].device)


def _refuse_several_devices(*arguments: Any) -> None:
    """One lone meta tensor leads to the fake, by which nothing at all would happen."""
    lists = [argument for argument in arguments if isinstance(argument, list)]
    devices = {t.device for tensors in lists for t in tensors if isinstance(t, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"expected all tensors on one device, found {devices}")


def _optional(value: Tensor | None, params: Sequence[Tensor]) -> Tensor | None:
    return None if value is None else _scalar(value, params)


def _empty_words(scores: Sequence[Tensor]) -> list[Tensor]:
    return [score.new_empty(bits.word_count(score.numel()), dtype=torch.int32) for score in scores]


def _written(*lists: Sequence[Tensor]) -> None:
    """Kernels write behind autograd's back: tell it, or a later backward is silently wrong."""
    for tensors in lists:  # one list of all would cost half as much again
        torch.autograd.graph.increment_version(tensors)


def _naming_nonfinite(
    role: str, tensors: Sequence[Tensor], names: Names, call: Callable[[], Any]
) -> Any:
    """Run an op that refuses NaN and infinity by position, and say which tensor it was.

    Only the failing path looks for it again, so the check costs no pass of its own.
    """
    if torch.compiler.is_compiling():
        return call()
    try:
        return call()
    except RuntimeError as error:
        for i in reference.nonfinite(list(tensors)):
            raise ValueError(
                f"{role}: {_name(i, names)} holds NaN or infinity; find the batch that made it, "
                "or pass finite values"
            ) from error
        raise


_register()
_load.status()
