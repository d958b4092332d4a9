"""Run ops of an emulated library beside the reference: ``python -m tests.cuda_on_cpu.exercise
LIBRARY OP...``. Says which op differs, and then fails.

Small, for it runs many times: once per planted fault (``test_faults.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from salun_fast import ops, reference
from tests.conftest import awkward_tensors, clones, same_bytes
from tests.ops import backends
from tests.ops.placement import moved
from tests.ops.steps import CASES, Half, compact, gradients, problem


def tied_scores() -> list[Tensor]:
    """Few values, so that ties are kept and dropped in many chunks."""
    generator = torch.Generator().manual_seed(1)
    sizes = (33, 0, 32, 70_000, 5)
    return [torch.randint(-3, 4, (n,), generator=generator).float() for n in sizes]


def accumulate() -> bool:
    held = True
    for dtype in ops.FLOATS:
        scores, grads = awkward_tensors(torch.float32, 1), moved(awkward_tensors(dtype, 2))
        expected, expected_grads = clones(scores), clones(grads)
        ops.accumulate_(scores, grads, rule="abs", zero_grads=True)
        reference.accumulate_(expected, expected_grads, ops.RULES.index("abs"), True)
        held &= all(map(same_bytes, scores + grads, expected + expected_grads))
    return held


def select() -> bool:
    held = True
    for scores in (tied_scores(), awkward_tensors(torch.float32, 3)):
        count = sum(score.numel() for score in scores)
        for k in (0, 1, count // 3, count // 2, count):
            masks, threshold = ops.select(scores, k)
            expected, expected_threshold = reference.select(scores, k, True, False)
            held &= all(map(same_bytes, [*masks, threshold], [*expected, expected_threshold]))
    return held


def histogram() -> bool:
    scores = tied_scores()
    counts = [ops.select_histogram(scores, prefix, level) for level, prefix in ((0, 0), (1, 1016))]
    expected = [reference.select_histogram(scores, 0, 0, True)]
    expected.append(reference.select_histogram(scores, 1016, 1, True))
    return all(map(torch.equal, counts, expected))


def pack() -> bool:
    key = (0x3F800000 + 1) + (1 << 23)  # of 2.0
    masks = ops.select_pack(tied_scores(), key, 9_000)
    return all(map(same_bytes, masks, reference.select_pack(tied_scores(), key, 9_000, True)))


def masked_step(name: str) -> bool:
    case = CASES[name]
    ours = problem(torch.float32, case.states)
    theirs = ours.copy()
    for grads in gradients(torch.float32, 2):
        case.op(ours, moved(grads))
        case.oracle(theirs, grads)
    return all(map(same_bytes, ours.tensors(), theirs.tensors()))


def compact_state() -> bool:
    case = CASES["sgd-nesterov-scaled"]
    ours = compact(problem(torch.float32, case.states))
    theirs = ours.copy()
    for grads in gradients(torch.float32, 2):
        case.op(ours, moved(grads))
        case.oracle(theirs, grads)
    return all(map(same_bytes, ours.tensors(), theirs.tensors()))


def half_precision() -> bool:
    """Both ways of bf16 parameters: a master copy, and stochastic rounding."""
    held = True
    for name in ("sgd-nesterov-scaled", "adam-amsgrad-ascent"):
        case = CASES[name]
        for stochastic in (False, True):
            ours = problem(torch.bfloat16, case.states)
            theirs, half = ours.copy(), Half()
            if stochastic:
                half = Half(origins=[(1 << 32) - 9] * len(ours.params), rounding_seed=5)
            else:
                half.masters = [t.clone().float() * 1.0001 for t in ours.params]
            their_half = half.copy()
            for grads in gradients(torch.bfloat16, 2):
                case.op(ours, moved(grads), **half.options())
                case.oracle(theirs, grads, their_half)
            mine, other = ours.tensors() + half.masters, theirs.tensors() + their_half.masters
            held &= all(map(same_bytes, mine, other))
    return held


def soft_threshold() -> bool:
    params, anchors = awkward_tensors(torch.bfloat16, 1), awkward_tensors(torch.bfloat16, 2)
    expected = clones(params)
    tau = ops.soft_threshold_(params, anchors, 30_000)
    same_tau = torch.equal(tau, reference.soft_threshold_(expected, anchors, 30_000))
    return same_tau and all(map(same_bytes, params, expected))


def per_sample() -> bool:
    """Whole numbers, whose sums are exact; more than one tile, and several shares of the batch."""
    generator = torch.Generator().manual_seed(1)
    grads = torch.randint(-3, 4, (3, 70, 3, 4), generator=generator).float()
    inputs = torch.randint(-3, 4, (3, 9, 3, 4), generator=generator).float()
    scores = torch.zeros(70, 9, 3, 3)
    expected = scores.clone()
    ops.per_sample_(scores, grads, inputs, padding=(1, 1))
    reference.per_sample_(expected, grads, inputs, [1, 1], [1, 1], [1, 1], 1, 1.0)
    return same_bytes(scores, expected)


EXERCISES: dict[str, Callable[[], bool]] = {
    "accumulate_": accumulate,
    "select": select,
    "select_histogram": histogram,
    "select_pack": pack,
    "masked_sgd_": lambda: masked_step("sgd-nesterov-scaled"),
    "masked_adam_": lambda: masked_step("adam-amsgrad-ascent"),
    "compact_state": compact_state,
    "half_precision": half_precision,
    "soft_threshold_": soft_threshold,
    "per_sample_": per_sample,
}


def main(library: str, *names: str) -> int:
    backends.emulated_library(library)
    with backends.in_place_of_cpu("cuda_on_cpu"):
        different = [name for name in names or EXERCISES if not EXERCISES[name]()]
    print("\n".join(f"{name} differs from the reference" for name in different) or "all the same")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
