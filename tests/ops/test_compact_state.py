"""State of the selected weights alone gives the bits of dense state; ranks that do not fit."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salun_fast import bits, ops
from tests.conftest import same_bytes
from tests.ops.steps import CASES, Half, Problem, compact, gradients, problem

# Around the word (32), the tile (512), the run (4096) and the chunk of a thread (16384).
SIZES = (0, 1, 31, 32, 33, 511, 512, 513, 4095, 4096, 4097, 16385, 33_000)


def _held(dense: Problem, ours: Problem) -> bool:
    """Whether weights, counters and selected state agree, and frozen state never moved."""
    return all(map(same_bytes, compact(dense).tensors(), ours.tensors()))


@pytest.mark.parametrize("dtype", ops.FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_compact_state_gives_the_bits_of_dense_state_and_of_the_oracle(name, dtype):
    case = CASES[name]
    dense = problem(dtype, case.states, density=0.3)
    ours, oracle = compact(dense), compact(dense)
    for grads in gradients(dtype, 2):
        case.op(dense, grads)
        case.op(ours, grads)
        case.oracle(oracle, grads)
    assert _held(dense, ours)
    assert all(map(same_bytes, oracle.tensors(), ours.tensors()))


def _half(mode: str, params: list[Tensor]) -> Half:
    if mode == "master":
        return Half([p.float() * 1.0001 if p.dtype != torch.float32 else p[:0] for p in params])
    origins = [(1 << 32) - 20_000 + i for i in range(len(params))]
    return Half(origins=origins, rounding_seed=3) if mode == "stochastic" else Half()


def _masks(kind: str, sizes: list[int], generator: torch.Generator) -> list[Tensor]:
    density = {"none": 0.0, "few": 0.02, "half": 0.5, "most": 0.9, "all": 1.0}[kind]
    return [bits.pack(torch.rand(n, generator=generator) < density) for n in sizes]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_step_of_any_mask_is_that_of_dense_state(data):
    name = data.draw(st.sampled_from(sorted(CASES)))
    mode = data.draw(st.sampled_from(["nearest", "master", "stochastic"]))
    param_dtypes = [d for d in ops.FLOATS if mode != "stochastic" or d != torch.float16]
    dtype = data.draw(st.sampled_from(param_dtypes))
    grad_dtype = data.draw(st.sampled_from(ops.FLOATS))
    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    kinds = st.sampled_from(["none", "few", "half", "most", "all"])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    case = CASES[name]
    params = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
    masks = [_masks(data.draw(kinds), [n], generator)[0] for n in sizes]
    states = [[torch.rand(n, generator=generator) for n in sizes] for _ in range(case.states)]
    steps = [torch.tensor(float(data.draw(st.integers(0, 1)))) for _ in sizes]
    dense = Problem(params, masks, states, steps)
    ours, half = compact(dense), _half(mode, params)
    our_half = half.copy()
    for _ in range(2):
        grads = [torch.randn(n, generator=generator).to(grad_dtype) for n in sizes]
        case.op(dense, grads, **half.options())
        case.op(ours, grads, **our_half.options())
    assert _held(dense, ours)
    assert all(map(same_bytes, half.masters, our_half.masters))


@pytest.mark.parametrize("name", ["sgd-nesterov-scaled", "adam-adamw-amsgrad"])
def test_any_thread_count_gives_the_same_bits(name):
    case, results, before = CASES[name], [], torch.get_num_threads()
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(n, generator=generator) for n in (50_001, 16_384)]
    grads = [torch.randn(p.shape, generator=generator) for p in params]
    masks = _masks("half", [p.numel() for p in params], generator)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            states = [[torch.zeros_like(p) for p in params] for _ in range(case.states)]
            ours = compact(Problem(params, masks, states, [torch.tensor(0.0) for _ in params]))
            case.op(ours, grads)
            case.op(ours, grads)
            results.append(ours.tensors())
    finally:
        torch.set_num_threads(before)
    assert all(map(same_bytes, *results))


def test_what_was_found_infinite_changes_nothing():
    case = CASES["adam-amsgrad-ascent"]
    ours = compact(problem(torch.float32, case.states))
    before = ours.copy()
    case.op(ours, gradients(torch.float32, 1)[0], found_inf=torch.tensor(1.0))
    assert all(map(same_bytes, ours.tensors(), before.tensors()))


# --- refusals -------------------------------------------------------------------------------------

N = 5000
KEEP = torch.arange(N) % 3 == 0
ONES = int(KEEP.sum())


def _lists(**changes: Any) -> dict[str, list[Tensor]]:
    words = bits.pack(KEEP)
    good = {
        "params": [torch.ones(N)],
        "grads": [torch.ones(N)],
        "exp_avgs": [torch.zeros(ONES)],
        "exp_avg_sqs": [torch.zeros(ONES)],
        "max_exp_avg_sqs": [torch.zeros(ONES)],
        "steps": [torch.tensor(0.0)],
        "masks": [words],
        "ranks": [bits.ranks(words, N)],
    }
    return {**good, **changes}


MISFITS = [
    ({"ranks": [torch.zeros(3, dtype=torch.int32)]}, "ranks: 'w' is torch.int32.*bits.ranks"),
    ({"ranks": [torch.zeros(2, dtype=torch.int64)]}, r"'w' .* \(2,\); expected int64 \(3,\)"),
    ({"ranks": []}, r"exp_avgs: 'w' has shape \(1667,\).*zeros_like"),
    ({"ranks": [torch.zeros(3, dtype=torch.int64)] * 2}, "params and ranks must pair up"),
    ({"masks": [torch.empty(0, dtype=torch.int32)]}, "ranks: 'w' has ranks but no words"),
    ({"exp_avgs": [torch.zeros(N + 1)]}, "exp_avgs: 'w' .*1667 ones.*bits.compress"),
    ({"exp_avg_sqs": [torch.zeros(1, ONES)]}, "exp_avg_sqs: 'w' .*1667 ones"),
    ({"max_exp_avg_sqs": [torch.zeros(ONES).double()]}, "max_exp_avg_sqs: 'w' is torch.float64"),
]  # fmt: skip
# Known to a kernel only where it reads the numbers, as the CPU's does.
UNCOUNTED = [
    ({"exp_avgs": [torch.zeros(ONES - 1)]}, "exp_avgs: 'w' .*1667 ones"),
    ({"max_exp_avg_sqs": [torch.zeros(ONES + 1)]}, "max_exp_avg_sqs: 'w' .*1667 ones"),
    ({"ranks": [torch.tensor([0, 1300, 1667])]}, "ranks: 'w' does not count the bits.*anew"),
    ({"ranks": [torch.tensor([1, 1366, 1667])]}, "ranks: 'w' does not count"),
    ({"ranks": [torch.tensor([0, 1 << 40, 1667])]}, "ranks: 'w' does not count"),
    ({"masks": [bits.pack(~KEEP)]}, "ranks: 'w' does not count"),
]  # fmt: skip


def _refused(changes: dict[str, list[Tensor]], words: str) -> None:
    lists = _lists(**changes)
    before = {role: [t.clone() for t in tensors] for role, tensors in lists.items()}
    with pytest.raises((ValueError, TypeError), match=words):
        ops.masked_adam_(**lists, lr=0.1, names=["w"])
    for role, tensors in lists.items():
        assert all(map(same_bytes, tensors, before[role])), role


@pytest.mark.parametrize(("changes", "words"), MISFITS)
def test_lists_that_do_not_fit_are_named_and_nothing_changes(changes, words):
    _refused(changes, words)


@pytest.mark.cpu_only
@pytest.mark.parametrize(("changes", "words"), UNCOUNTED)
def test_ranks_of_another_mask_are_named_and_nothing_changes(changes, words):
    _refused(changes, words)


def _unchecked(lists: dict[str, list[Tensor]]) -> None:
    """As whoever calls the op without its wrapper."""
    ranks = lists.pop("ranks")
    torch.ops.salun_fast.masked_adam_(
        *lists.values(), [], ranks, torch.tensor(0.1), 0.9, 0.99, 1e-8, 0.0, False, False, None,
        None, [], None,
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [[0, ONES - 5, ONES], [-40, 0, ONES], [1 << 40, 1 << 41, ONES]])
def test_ranks_of_another_mask_touch_no_foreign_memory(ranks, backend):
    """A GPU does not wait to read them: its kernel must keep to the state, whatever they say."""
    memory = torch.full((3, ONES + 200), 7.0)
    m, v, largest = (row[100:-100] for row in memory)
    lists = _lists(exp_avgs=[m], exp_avg_sqs=[v], max_exp_avg_sqs=[largest])
    lists["ranks"] = [torch.tensor(ranks)]
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="ranks"):
            _unchecked(lists)
    elif "tsan" not in os.environ.get("LD_PRELOAD", ""):  # they do make threads meet
        _unchecked(lists)
    assert (memory[:, :100] == 7).all()
    assert (memory[:, -100:] == 7).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": [torch.zeros(2, dtype=torch.int64)]},
        {"ranks": [torch.zeros(3, dtype=torch.int32)]},
        {"ranks": [torch.zeros(3, dtype=torch.int64)] * 2},
        {"masks": [torch.empty(0, dtype=torch.int32)]},
        {"exp_avgs": [torch.zeros(N + 1)]},
        {"exp_avgs": [torch.zeros(2 * ONES)[::2]]},
    ],
)
def test_the_kernel_itself_refuses_what_would_touch_foreign_memory(changes):
    with pytest.raises(RuntimeError, match="ranks|exp_avgs"):
        _unchecked(_lists(**changes))
