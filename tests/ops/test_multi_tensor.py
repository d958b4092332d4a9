"""Lists as training has them: views into buckets, hundreds of tiny tensors, empty ones anywhere;
and scalars that lie beside the parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from salun_fast import ops, reference
from salun_fast.ops import FLOATS
from tests.conftest import awkward_tensors, clones, same_bytes
from tests.ops.placement import moved
from tests.ops.steps import CASES, Adam, Problem, Sgd, gradients, problem, random_masks

STEPS = ("sgd-nesterov-scaled", "adam-adamw-amsgrad")
ROLES = ("params", "grads", "states", "masks")


def _problem(params: list[Tensor], states: int) -> Problem:
    return Problem(
        params,
        random_masks(params, 0.5, 3),
        [[torch.zeros_like(p, dtype=torch.float32) for p in params] for _ in range(states)],
        [torch.tensor(0.0) for _ in params],
    )


def _held(case: Sgd | Adam, ours: Problem, grads: list[list[Tensor]]) -> bool:
    """Whether two steps give the bits of the oracle."""
    theirs = ours.copy()
    for step in grads:
        case.op(ours, step)
        case.oracle(theirs, step)
    return all(map(same_bytes, ours.tensors(), theirs.tensors()))


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [4, 8, 12])
@pytest.mark.parametrize("off", [*[(role,) for role in ROLES], ("params", "grads"), ROLES])
@pytest.mark.parametrize("name", STEPS)
def test_steps_take_each_list_from_any_address(name, off, offset):
    ours = problem(torch.float32, CASES[name].states)
    grads = gradients(torch.float32, 2)
    if "params" in off:
        ours.params = moved(ours.params, offset)
    if "grads" in off:
        grads = [moved(step, offset) for step in grads]
    if "states" in off:
        ours.states = [moved(state, offset) for state in ours.states]
    if "masks" in off:
        ours.masks = moved(ours.masks, offset)
    assert _held(CASES[name], ours, grads)


@pytest.mark.parametrize("offset", [2, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", STEPS)
def test_halves_may_lie_anywhere(name, dtype, offset):
    ours = problem(dtype, CASES[name].states)
    grads = [moved(step, offset) for step in gradients(dtype, 2)]
    assert _held(CASES[name], ours, grads)
    ours.params = moved(ours.params, offset)
    assert _held(CASES[name], ours, gradients(dtype, 2))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_other_ops_take_views_into_a_bucket_too(dtype):
    scores, grads = awkward_tensors(torch.float32, 1), moved(awkward_tensors(dtype, 2))
    expected, expected_grads = clones(scores), clones(grads)
    ops.accumulate_(scores, grads, rule="square", zero_grads=True)
    reference.accumulate_(expected, expected_grads, ops.RULES.index("square"), True)
    assert all(map(same_bytes, scores + grads, expected + expected_grads))
    ranked = moved(awkward_tensors(dtype, 3))
    masks, _ = ops.select(ranked, 20_000)
    assert all(map(same_bytes, masks, reference.select(ranked, 20_000, True, False)[0]))
    params, anchors = moved(awkward_tensors(dtype, 4)), awkward_tensors(dtype, 5)
    shrunk = clones(params)
    ops.soft_threshold_(params, anchors, 20_000)
    reference.soft_threshold_(shrunk, anchors, 20_000)
    assert all(map(same_bytes, params, shrunk))


def test_all_views_of_one_bucket():
    """As DDP hands gradients out: one behind the other, at whatever address."""
    shapes = [p.shape for p in awkward_tensors(torch.float32, 1) if p.is_contiguous()]
    bucket = torch.randn(3 + sum(shape.numel() for shape in shapes))
    grads, start = [], 3
    for shape in shapes:
        grads.append(bucket[start : start + shape.numel()].view(shape))
        start += shape.numel()
    ours = _problem([torch.randn(shape) for shape in shapes], 1)
    assert _held(Sgd(momentum=0.9), ours, [grads, grads])


# --- how many -------------------------------------------------------------------------------------

MANY = 1500  # past what the arguments of one launch can carry


def _tiny(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(i % 11, generator=generator).to(dtype) for i in range(MANY)]


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_very_many_tiny_tensors(name):
    ours = _problem(_tiny(torch.bfloat16, 1), CASES[name].states)
    assert _held(CASES[name], ours, [_tiny(torch.float32, 2), _tiny(torch.float32, 3)])


def test_dtypes_may_be_mixed_in_one_list():
    params = [t.to(FLOATS[i % 3]) for i, t in enumerate(_tiny(torch.float32, 1)[:60])]
    grads = [t.to(FLOATS[i // 3 % 3]) for i, t in enumerate(_tiny(torch.float32, 2)[:60])]
    assert _held(CASES["adam-adam"], _problem(params, 3), [grads])


def test_the_other_ops_take_very_many_tiny_tensors_too():
    scores = _tiny(torch.float32, 1)
    expected = clones(scores)
    ops.accumulate_(scores, _tiny(torch.float16, 2))
    reference.accumulate_(expected, _tiny(torch.float16, 2), 0, False)
    assert all(map(same_bytes, scores, expected))
    masks, _ = ops.select(scores, 3000)
    assert all(map(same_bytes, masks, reference.select(scores, 3000, True, False)[0]))
    anchors = _tiny(torch.float32, 3)
    ops.soft_threshold_(scores, anchors, 3000)
    reference.soft_threshold_(expected, anchors, 3000)
    assert all(map(same_bytes, scores, expected))


EMPTY_PLACES: dict[str, list[int]] = {
    "first": [0, 40, 5000],
    "middle": [40, 0, 0, 5000],
    "last": [40, 5000, 0],
    "both ends": [0, 0, 33, 0],
    "all": [0, 0, 0],
    "one": [0],
}


@pytest.mark.parametrize("place", EMPTY_PLACES)
@pytest.mark.parametrize("name", STEPS)
def test_steps_with_empty_tensors(name, place):
    sizes = EMPTY_PLACES[place]
    ours = _problem([torch.randn(n) for n in sizes], CASES[name].states)
    assert _held(CASES[name], ours, [[torch.randn(n) for n in sizes] for _ in range(2)])


@pytest.mark.parametrize("place", EMPTY_PLACES)
def test_the_other_ops_with_empty_tensors(place):
    sizes = EMPTY_PLACES[place]
    scores, grads = ([torch.randn(n) for n in sizes] for _ in range(2))
    expected = clones(scores)
    ops.accumulate_(scores, grads)
    reference.accumulate_(expected, grads, 0, False)
    assert all(map(same_bytes, scores, expected))
    for k in {0, sum(sizes) // 2, sum(sizes)}:
        masks, threshold = ops.select(scores, k)
        words, kth = reference.select(scores, k, True, False)
        assert all(map(same_bytes, [*masks, threshold], [*words, kth]))
        shrunk, expected = clones(scores), clones(scores)
        tau = ops.soft_threshold_(shrunk, grads, k)
        assert same_bytes(tau, reference.soft_threshold_(expected, grads, k))
        assert all(map(same_bytes, shrunk, expected))
    counts = ops.select_histogram(scores, 0, 0)
    assert torch.equal(counts, reference.select_histogram(scores, 0, 0, True))


# --- scalars beside the parameters ----------------------------------------------------------------


def _sgd(p: Problem, grads: list[Tensor], **scalars: Tensor) -> None:
    ops.masked_sgd_(p.params, grads, p.states[0], p.steps, p.masks, momentum=0.9, **scalars)


def _adam(p: Problem, grads: list[Tensor], **scalars: Tensor) -> None:
    m, v, largest = p.states
    ops.masked_adam_(p.params, grads, m, v, largest, p.steps, p.masks, eps=1e-3, **scalars)


KINDS: list[tuple[Callable[..., None], Sgd | Adam]] = [
    (_sgd, Sgd(momentum=0.9, scale=8.0, lr=0.25)),
    (_adam, Adam(eps=1e-3, amsgrad=True, scale=8.0, lr=0.25)),
]


@pytest.mark.parametrize(("step", "case"), KINDS, ids=["sgd", "adam"])
def test_scalars_may_be_fp32_tensors(step, case):
    ours = problem(torch.float32, case.states)
    theirs = ours.copy()
    for grads in gradients(torch.float32, 2):
        step(
            ours, grads, lr=torch.tensor(0.25), grad_scale=torch.tensor(8.0),
            found_inf=torch.tensor(0.0),
        )  # fmt: skip
        case.oracle(theirs, grads)
    assert all(map(same_bytes, ours.tensors(), theirs.tensors()))


@pytest.mark.parametrize("found", [1.0, float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize(("step", "case"), KINDS, ids=["sgd", "adam"])
def test_what_was_found_infinite_changes_nothing_at_all(step, case, found):
    ours = problem(torch.bfloat16, case.states)
    before = ours.copy()
    poisoned = [torch.full_like(grad, torch.inf) for grad in gradients(torch.float32, 1)[0]]
    step(ours, poisoned, lr=torch.tensor(0.25), found_inf=torch.tensor(found))
    assert all(map(same_bytes, ours.tensors(), before.tensors()))
