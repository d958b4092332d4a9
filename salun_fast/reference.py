"""Every op in plain torch: the oracle of the tests and the fallback where no kernel exists.

Signatures are those of the registered ops (``ops.py``), without names: inputs are checked there.
Written for clarity: each function is the definition of what its kernel must compute, bit for bit.
The updates are, call for call, those of ``torch.optim`` with ``foreach=False``, but for the square
root: torch may take it from a vector library that rounds 1 ulp off; here it is IEEE's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from salun_fast.bits import in_memory_order, pack, unpack, word_count

# Ordered keys (see csrc/rules/ordered_key.h): 0 is NaN, larger is more salient.
_INFINITY_BITS = 0x7F800000
KEY_MAX = _INFINITY_BITS + 1
HISTOGRAM_BINS = 2048
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
# Per level: how far a key is shifted to its digit, and to the prefix that fixed the digits above.
HISTOGRAM_LEVELS = ((21, 32), (10, 21), (0, 10))


# In the order of ops.RULES: signed sum (SalUn), sum of |g|, sum of g² (diagonal Fisher).
_SCORE_RULES = (Tensor.float, Tensor.abs, Tensor.square)


def accumulate_(scores: list[Tensor], grads: list[Tensor], rule: int, zero_grads: bool) -> None:
    """scores += g, |g| or g², in fp32 (SalUn, eq. 4: the sum comes before the absolute value)."""
    for score, grad in zip(scores, grads, strict=True):
        score += _SCORE_RULES[rule](grad.float())
        if zero_grads:
            grad.zero_()


def ordered_keys(score: Tensor, largest: bool) -> Tensor:
    """int64 keys of |score|, row-major: a larger key is chosen first, NaN (0) last."""
    bits = score.float().contiguous().view(torch.int32).reshape(-1).to(torch.int64) & 0x7FFFFFFF
    keys = bits + 1 if largest else KEY_MAX - bits
    return torch.where(bits > _INFINITY_BITS, 0, keys)


def key_to_magnitude(key: int, largest: bool) -> Tensor:
    """The |score| behind a key, as a 0-dim fp32 tensor."""
    if key == 0:
        return torch.tensor(float("nan"))
    bits = key - 1 if largest else KEY_MAX - key
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def select(
    scores: list[Tensor], k: int, largest: bool, allow_nonfinite: bool
) -> tuple[list[Tensor], Tensor]:
    """Masks of the k most salient elements over all tensors, and the k-th |score|."""
    if not allow_nonfinite:
        _refuse_nonfinite(scores)
    device = scores[0].device
    if k == 0:
        nothing = torch.tensor(float("inf") if largest else float("-inf"), device=device)
        return [_no_words(score) for score in scores], nothing
    keys = torch.cat([ordered_keys(score, largest) for score in scores])
    threshold = int(keys.kthvalue(keys.numel() - k + 1).values)
    ties = k - int((keys > threshold).sum())
    masks = select_pack(scores, threshold, ties, largest)
    return masks, key_to_magnitude(threshold, largest).to(device)


def select_histogram(scores: list[Tensor], prefix: int, level: int, largest: bool) -> Tensor:
    """Counts of one digit of the keys, among the keys that begin with ``prefix``: int64 [2048]."""
    digit_shift, prefix_shift = HISTOGRAM_LEVELS[level]
    keys = torch.cat([ordered_keys(score, largest) for score in scores])
    keys = keys[keys >> prefix_shift == prefix]
    digits = (keys >> digit_shift) & (HISTOGRAM_BINS - 1 if level < 2 else 1023)
    return torch.bincount(digits, minlength=HISTOGRAM_BINS)


def select_pack(scores: list[Tensor], threshold: int, ties: int, largest: bool) -> list[Tensor]:
    """Masks of all keys above ``threshold`` and of the first ``ties`` keys equal to it."""
    masks = []
    for score in scores:
        keys = ordered_keys(score, largest)
        equal = keys == threshold
        chosen = (keys > threshold) | (equal & (equal.cumsum(0) <= ties))
        ties -= min(ties, int(equal.sum()))
        masks.append(pack(chosen))
    return masks


def masked_sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    steps: list[Tensor],
    masks: list[Tensor],
    masters: list[Tensor],
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    origins: list[int],
    rounding_seed: int | None,
) -> None:
    """SGD as ``torch.optim.sgd._single_tensor_sgd``; weights outside the mask keep their bytes."""
    if _skipped(found_inf):
        return
    rate = float(lr)
    for i, param in enumerate(params):
        g = _gradient(grads[i], maximize, grad_scale)
        theta = _Weights(i, param, masters, origins, rounding_seed, float(steps[i]) + 1)
        weight = theta.value
        if weight_decay != 0:
            g = g.add(weight, alpha=weight_decay)
        keep = _kept(masks[i], weight)
        if momentum != 0:
            buffer = in_memory_order(momentum_buffers[i])
            if float(steps[i]) == 0:
                moved = g.clone()
            else:
                moved = buffer.mul(momentum).add_(g, alpha=1 - dampening)
            g = g.add(moved, alpha=momentum) if nesterov else moved
            _write(buffer, moved, keep)
        theta.write(weight.add(g, alpha=-rate), keep)
        steps[i] += 1


def masked_adam_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    masks: list[Tensor],
    masters: list[Tensor],
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    origins: list[int],
    rounding_seed: int | None,
) -> None:
    """Adam, AdamW as ``torch.optim.adam._single_tensor_adam``; frozen weights keep their bytes."""
    if _skipped(found_inf):
        return
    rate = float(lr)
    for i, param in enumerate(params):
        g = _gradient(grads[i], maximize, grad_scale)
        m, v = in_memory_order(exp_avgs[i]), in_memory_order(exp_avg_sqs[i])
        steps[i] += 1
        step = float(steps[i])
        theta = _Weights(i, param, masters, origins, rounding_seed, step)
        weight = theta.value
        keep = _kept(masks[i], weight)
        if weight_decay != 0:
            if decoupled:
                weight = weight.mul(1 - rate * weight_decay)
            else:
                g = g.add(weight, alpha=weight_decay)
        new_m = m.lerp(g, 1 - beta1)
        new_v = v.mul(beta2).addcmul_(g, g, value=1 - beta2)
        second = new_v
        if max_exp_avg_sqs:
            largest = in_memory_order(max_exp_avg_sqs[i])
            second = torch.maximum(largest, new_v)
            _write(largest, second, keep)
        denominator = (_ieee_sqrt(second) / (1 - beta2**step) ** 0.5).add_(eps)
        _write(m, new_m, keep)
        _write(v, new_v, keep)
        moved = weight.addcdiv(new_m, denominator, value=-(rate / (1 - beta1**step)))
        theta.write(moved, keep)


def soft_threshold_(params: list[Tensor], anchors: list[Tensor], k: int) -> Tensor:
    """SalUn-soft's proximal step: the k smallest |θ - θ_ref| become 0, the others shrink by τ."""
    device = params[0].device
    if k == 0:
        return torch.tensor(float("-inf"), device=device)
    deltas = [
        in_memory_order(p).float() - in_memory_order(a).float()
        for p, a in zip(params, anchors, strict=True)
    ]
    _refuse_nonfinite(deltas)
    tau = torch.cat(deltas).abs().kthvalue(k).values
    for param, anchor, delta in zip(params, anchors, deltas, strict=True):
        p, a = in_memory_order(param), in_memory_order(anchor)
        shrunk = a.float() + torch.copysign(delta.abs() - tau, delta)
        p.copy_(torch.where(delta.abs() > tau, shrunk.to(p.dtype), a))
    return tau


def per_sample_(
    scores: Tensor,
    grads: Tensor,
    inputs: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: float,
) -> None:
    """scores += scale Σ_i |∇_W ℓ_i|: one sample's gradient of a convolution's weight at a time."""
    total = torch.zeros_like(scores)
    window = (stride, padding, dilation, groups)
    for i in range(len(inputs)):
        x, grad = inputs[i : i + 1].float(), grads[i : i + 1].float()
        gradient: Tensor = conv2d_weight(x, scores.shape, grad, *window)  # type: ignore[no-untyped-call]
        total += gradient.abs()
    scores.add_(total, alpha=scale)


class _Weights:
    """A parameter of a step as fp32 ``value``: of its master copy where it has one."""

    def __init__(
        self,
        index: int,
        param: Tensor,
        masters: list[Tensor],
        origins: list[int],
        rounding_seed: int | None,
        step: float,
    ) -> None:
        self._param = in_memory_order(param)
        has_master = bool(masters) and masters[index].numel() > 0
        self._master = in_memory_order(masters[index]) if has_master else None
        self.value = self._param.float() if self._master is None else self._master.clone()
        self._rounding = None
        if rounding_seed is not None and param.dtype == torch.bfloat16:
            self._rounding = (rounding_seed, step, origins[index])

    def write(self, value: Tensor, keep: Tensor | None) -> None:
        if self._master is not None:
            _write(self._master, value, keep)
        if self._rounding is not None:
            value = stochastic_bfloat16(value, rounding_bits(value.numel(), *self._rounding))
        _write(self._param, value, keep)


def rounding_bits(count: int, seed: int, step: float, origin: int) -> Tensor:
    """16 random bits for each of ``count`` weights from flat index ``origin`` on: int64 [count].

    See csrc/rules/rounding.h.
    """
    key = _split_mix(_split_mix(seed & _MASK64) ^ int(step))
    index = torch.arange(origin, origin + count)
    mixed = _low_bias((index & _MASK32) ^ (key & _MASK32))
    return _low_bias(mixed ^ (index >> 32 & _MASK32) ^ (key >> 32)) >> 16


def stochastic_bfloat16(value: Tensor, random: Tensor) -> Tensor:
    """fp32 ``value`` up or down to bf16, by the 16 ``random`` bits of each element."""
    bits = value.view(torch.int32).to(torch.int64) & _MASK32
    magnitude = bits & 0x7FFFFFFF
    carried = (bits + torch.where(magnitude < _INFINITY_BITS, random.to(bits.device), 0)) >> 16
    rounded = torch.where(magnitude > _INFINITY_BITS, 0x7FC0, carried) & 0xFFFF
    return ((rounded ^ 0x8000) - 0x8000).to(torch.int16).view(torch.bfloat16)


def _split_mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _low_bias(x: Tensor) -> Tensor:
    """On int64 that hold 32 bits; products wrap, and their lower bits are right."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def _gradient(grad: Tensor, maximize: bool, grad_scale: Tensor | None) -> Tensor:
    g = in_memory_order(grad).float()
    if grad_scale is not None:
        g = g / grad_scale
    return -g if maximize else g


def _kept(words: Tensor, flat: Tensor) -> Tensor | None:
    """Bool mask in memory order, or None where every weight moves."""
    return unpack(words, flat.shape) if words.numel() else None


def _write(target: Tensor, value: Tensor, keep: Tensor | None) -> None:
    value = value.to(target.dtype)
    target.copy_(value if keep is None else torch.where(keep, value, target))


def _ieee_sqrt(value: Tensor) -> Tensor:
    """The correctly rounded fp32 root: rounding the fp64 root gives it, whoever computes that."""
    return value.double().sqrt().float()


def _skipped(found_inf: Tensor | None) -> bool:
    return found_inf is not None and float(found_inf) != 0


def _no_words(score: Tensor) -> Tensor:
    return score.new_zeros(word_count(score.numel()), dtype=torch.int32)


def _refuse_nonfinite(tensors: list[Tensor]) -> None:
    for index in nonfinite(tensors):
        raise RuntimeError(f"tensor {index} of the list holds NaN or infinity")


def nonfinite(tensors: list[Tensor]) -> Iterator[int]:
    """Indices of the tensors that hold NaN or infinity."""
    return (i for i, tensor in enumerate(tensors) if not bool(torch.isfinite(tensor).all()))
