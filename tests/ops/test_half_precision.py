"""Master copies and stochastic rounding in both masked steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from salun_fast import bits, ops, reference
from tests.conftest import clones, same_bytes
from tests.ops.steps import CASES, Half, Problem, gradients, problem

HALVES = [torch.float16, torch.bfloat16]
SOME = ["sgd-dampened-ascent", "adam-adamw-amsgrad"]


def masters_of(p: Problem) -> Half:
    """Copies with bits that no half holds; none for one parameter."""
    copies = [torch.empty_like(t, dtype=torch.float32).copy_(t) for t in p.params]
    for copy in copies:
        copy.add_(copy.abs() * 1e-4)
    copies[4] = torch.empty(0)
    return Half(masters=copies)


def random_bits(p: Problem, seed: int = 11) -> Half:
    """Origins on both sides of 2^32."""
    return Half(origins=[(1 << 32) - 20_000 + 7 * i for i in range(len(p.params))],
                rounding_seed=seed)  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_a_step_by_a_master_equals_the_oracle_bit_for_bit(name, dtype):
    case = CASES[name]
    ours = problem(dtype, case.states)
    theirs, half = ours.copy(), masters_of(ours)
    their_half = half.copy()
    for grads in gradients(dtype, 2):
        case.op(ours, grads, **half.options())
        case.oracle(theirs, grads, their_half)
    for mine, oracle in zip(
        [*ours.tensors(), *half.masters], [*theirs.tensors(), *their_half.masters], strict=True
    ):
        assert same_bytes(mine, oracle)


@pytest.mark.parametrize("name", SOME)
def test_a_master_follows_the_fp32_step_and_its_parameter_rounds_it(name):
    case = CASES[name]
    ours = problem(torch.bfloat16, case.states)
    half = masters_of(ours)
    half.masters[4] = ours.params[4].float()
    whole = Problem(clones(half.masters), ours.masks, [clones(s) for s in ours.states],
                    clones(ours.steps))  # fmt: skip
    frozen = clones(ours.params)
    for grads in gradients(torch.float32, 3):
        case.op(ours, grads, **half.options())
        case.op(whole, grads)
    for i, (param, master) in enumerate(zip(ours.params, half.masters, strict=True)):
        assert same_bytes(master, whole.params[i])
        words = ours.masks[i]
        flat, old = bits.in_memory_order(param), bits.in_memory_order(frozen[i])
        keep = bits.unpack(words, flat.shape) if words.numel() else torch.ones_like(flat).bool()
        rounded = bits.in_memory_order(master).to(torch.bfloat16)
        assert same_bytes(flat, torch.where(keep, rounded, old))


@pytest.mark.parametrize("name", CASES)
def test_stochastic_rounding_equals_the_oracle_bit_for_bit(name):
    case = CASES[name]
    ours = problem(torch.bfloat16, case.states)
    theirs, half = ours.copy(), random_bits(ours)
    for grads in gradients(torch.float32, 2):
        case.op(ours, grads, **half.options())
        case.oracle(theirs, grads, half)
    assert all(map(same_bytes, ours.tensors(), theirs.tensors()))


@pytest.mark.parametrize("name", SOME)
def test_the_random_bits_depend_on_seed_step_and_flat_index_alone(name):
    """So a parameter may be cut anywhere, on any thread, and seeds differ."""
    case = CASES[name]
    grads = torch.randn(40_000)
    start = torch.randn(40_000).to(torch.bfloat16)

    def stepped(cuts: list[int], seed: int) -> torch.Tensor:
        pieces = [piece.clone() for piece in start.split(cuts)]
        state = [[torch.zeros_like(t, dtype=torch.float32) for t in pieces] for _ in range(3)]
        p = Problem(pieces, [torch.zeros(0, dtype=torch.int32)] * len(cuts), state[: case.states],
                    [torch.tensor(0.0) for _ in cuts])  # fmt: skip
        origins = [sum(cuts[:i]) for i in range(len(cuts))]
        for _ in range(2):
            case.op(p, list(grads.split(cuts)), origins=origins, rounding_seed=seed)
        return torch.cat(pieces)

    whole = stepped([40_000], 1)
    assert same_bytes(whole, stepped([1, 30_001, 9_998], 1))
    assert not same_bytes(whole, stepped([40_000], 2))


def test_fp32_parameters_beside_bf16_ones_step_as_ever():
    case = CASES["adam-adamw-amsgrad"]
    ours, theirs = problem(torch.float32, case.states), problem(torch.float32, case.states)
    for grads in gradients(torch.float32, 2):
        case.op(ours, grads, **random_bits(ours).options())
        case.op(theirs, grads)
    assert all(map(same_bytes, ours.tensors(), theirs.tensors()))


def test_what_cannot_be_is_refused_with_nothing_changed():
    case = CASES["sgd-paper"]
    ours = problem(torch.float16, case.states)
    before = ours.copy()
    (grads,) = gradients(torch.float16, 1)
    with pytest.raises(TypeError, match="stochastic rounding is for bfloat16"):
        case.op(ours, grads, **random_bits(ours).options())
    half = masters_of(ours)
    half.masters[6] = half.masters[6].to(torch.float64)
    with pytest.raises(ValueError, match="masters: tensor 6 is torch.float64"):
        case.op(ours, grads, **half.options())
    half.masters[6] = torch.zeros(3)
    with pytest.raises(ValueError, match="masters: tensor 6 .* expected float32 laid out"):
        case.op(ours, grads, **half.options())
    with pytest.raises(ValueError, match=r"zip|pair up|shorter"):
        case.op(ours, grads, masters=half.masters[:3])
    assert all(map(same_bytes, ours.tensors(), before.tensors()))


# --- the rule itself ------------------------------------------------------------------------------


def neighbours(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bf16 numbers around fp32 ones, towards and away from zero."""
    kept = value.view(torch.int32) & ~0xFFFF
    return kept.view(torch.float32), (kept + 0x10000).view(torch.float32)


@pytest.mark.cpu_only
@given(st.floats(width=32), st.integers(0, 0xFFFF))
def test_a_number_goes_to_one_of_its_two_neighbours(number, random):
    value = torch.tensor([number])
    found = reference.stochastic_bfloat16(value, torch.tensor([random])).float()
    if number != number:
        assert found.isnan()
        return
    towards, away = neighbours(value)
    exact = int(value.view(torch.int32)) & 0xFFFF == 0 or value.isinf()
    up = (int(value.view(torch.int32)) & 0xFFFF) + random > 0xFFFF and not exact
    assert torch.equal(found, value if exact else away if up else towards)


@pytest.mark.cpu_only
def test_rounding_is_right_on_average_and_its_bits_are_uniform():
    """At 4 standard errors, with fixed seeds."""
    count = 1 << 18
    for seed, step in ((0, 1.0), (1, 1.0), (0, 2.0), (-5, 1e6)):
        random = reference.rounding_bits(count, seed, step, origin=0)
        assert abs(float(random.double().mean()) - 32767.5) < 4 * 65536 / (12 * count) ** 0.5
        for bit in range(16):
            share = float((random >> bit & 1).double().mean())
            assert abs(share - 0.5) < 4 * 0.5 / count**0.5, (seed, step, bit)
        counts = torch.bincount(random >> 8, minlength=256).double()
        chi = float(((counts - count / 256).square() / (count / 256)).sum())
        assert abs(chi - 255) < 4 * (2 * 255) ** 0.5
    value = torch.full((count,), 1.0 + 2**-7 * 0.3)  # 0.3 of the way to the next bf16
    up = reference.stochastic_bfloat16(value, reference.rounding_bits(count, 3, 1.0, 0)).float()
    share = float((up > 1).double().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5


@pytest.mark.cpu_only
def test_neighbouring_weights_steps_and_seeds_are_not_correlated():
    count = 1 << 18
    base = reference.rounding_bits(count, 0, 1.0, 0).double()

    def correlation(other: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([base, other.double()]))[0, 1])

    others = [
        reference.rounding_bits(count, 0, 1.0, 1),
        reference.rounding_bits(count, 0, 1.0, 32),
        reference.rounding_bits(count, 0, 1.0, 1 << 32),
        reference.rounding_bits(count, 0, 2.0, 0),
        reference.rounding_bits(count, 1, 1.0, 0),
    ]
    for other in others:
        assert abs(correlation(other)) < 4 / count**0.5


@pytest.mark.cpu_only
def test_the_hash_is_the_published_one():
    """SplitMix64's first outputs for seed 0, and lowbias32 as a bijection near zero."""
    assert reference._split_mix(0) == 0xE220A8397B1DCDAF
    assert reference._split_mix(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    mixed = reference._low_bias(torch.arange(1 << 16))
    assert mixed.unique().numel() == 1 << 16
    assert ops.FLOATS  # the kernels are compared with this reference above
