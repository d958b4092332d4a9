"""Scores of several processes added up, and the memory that measuring takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from salun_fast.evaluation.resources import PeakMemory
from salun_fast.saliency import SCORES, Saliency
from tests.conftest import same_bytes
from tests.processes import run_ranks

SHAPES = {"conv": (8, 4, 3, 3), "empty": (0, 3), "scalar": (), "tail": (33,), "weight": (40, 25)}
BATCHES = 7
FROM_GRADIENTS = [score for score in SCORES if score != "per_sample"]
Gradients = dict[str, Tensor]


def parameters(*, channels_last: bool = False) -> dict[str, nn.Parameter]:
    made = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    if channels_last:
        made["conv"] = nn.Parameter(
            torch.zeros(SHAPES["conv"]).contiguous(memory_format=torch.channels_last)
        )
    return made


def batch(index: int) -> Gradients:
    """Small integers, whose sums and sums of squares are exact in any order."""
    generator = torch.Generator().manual_seed(index)
    return {
        name: torch.randint(-9, 10, shape, generator=generator).float()
        for name, shape in SHAPES.items()
    }


def gather(saliency: Saliency, given: dict[str, nn.Parameter], batches: range) -> None:
    for index in batches:
        for name, grad in batch(index).items():
            given[name].grad = grad
        saliency.accumulate()


def scores_by_one_process(score: str) -> Saliency:
    given = parameters()
    saliency = Saliency(given, score)
    gather(saliency, given, range(BATCHES))
    return saliency


# --- what a rank does, in a process of its own ----------------------------------------------------


def all_scores(rank: int, world: int) -> dict[str, Any]:
    """Each score, over uneven shares; the last of three ranks has no batch at all."""
    shares = {2: [range(3), range(3, BATCHES)], 3: [range(5), range(5, BATCHES), range(0)]}
    found: dict[str, Any] = {}
    for score in FROM_GRADIENTS:
        given = parameters(channels_last=rank == 1)
        saliency = Saliency(given, score)
        gather(saliency, given, shares[world][rank])
        saliency.all_reduce()
        found[score] = {
            "batches": saliency.batches,
            "scores": {name: saliency[name] for name in saliency.names},
            "mask": saliency.mask(0.3).to_dict(),
        }
    return found


def all_refusals(rank: int, world: int) -> dict[str, Any]:
    """Per problem, which only rank 1 has, the error that this rank saw."""
    own = rank == 1
    shorter = {"first": nn.Parameter(torch.zeros(5 if own else 6))}
    renamed = {"second" if own else "first": nn.Parameter(torch.zeros(6))}
    same = {"first": nn.Parameter(torch.zeros(6))}
    found: dict[str, Any] = {
        "shape": error_of(filled(shorter)),
        "name": error_of(filled(renamed)),
        "score": error_of(filled(same, "sum_of_abs" if own else "abs_of_sum")),
        "loaded": error_of(Saliency.from_dict(same) if own else filled(same)),
    }
    measuring = filled(same)
    if own:
        with measuring.measure():
            found["measuring"] = error_of(measuring)
    else:
        found["measuring"] = error_of(measuring)
    twice = filled(same)
    twice.all_reduce()
    found["twice"] = error_of(twice)
    lone = filled(same)
    groups = [dist.new_group([member]) for member in range(world)]
    found["foreign group"] = error_of(lone, groups[1 - rank])
    lone.all_reduce(groups[rank])
    lone.all_reduce(groups[rank])
    found["lone"] = (lone.batches, lone["first"])
    return found


def scores_and_refusals(rank: int, world: int) -> dict[str, Any]:
    """In one: starting processes takes longest."""
    return all_scores(rank, world) | all_refusals(rank, world)


def filled(given: dict[str, nn.Parameter], score: str = "abs_of_sum") -> Saliency:
    for parameter in given.values():
        parameter.grad = torch.full_like(parameter, -2.0)
    saliency = Saliency(given, score)
    saliency.accumulate()
    return saliency


def error_of(saliency: Saliency, group: dist.ProcessGroup | None = None) -> tuple[str, str, float]:
    """Kind and words of what all_reduce raises, and the largest score after it."""
    try:
        saliency.all_reduce(group)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error), float(saliency[saliency.names[0]].max())
    return "", "", 0.0


# --- promises -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(scores_and_refusals, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(all_scores, 3, tmp_path_factory.mktemp("three"))


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
@pytest.mark.parametrize("score", FROM_GRADIENTS)
def test_ranks_build_the_mask_of_one_process_that_saw_all_data(ranks: str, score: str, request):
    alone = scores_by_one_process(score)
    for found in request.getfixturevalue(ranks):
        assert found[score]["batches"] == BATCHES
        for name, bits in alone.mask(0.3).to_dict().items():
            assert same_bytes(found[score]["scores"][name], alone[name])
            assert torch.equal(found[score]["mask"][name], bits)


@pytest.mark.parametrize("problem", ["shape", "name", "score"])
def test_ranks_that_measured_different_things_all_raise_and_add_nothing(two_ranks, problem: str):
    for found in two_ranks:
        kind, words, largest = found[problem]
        assert (kind, largest) == ("ValueError", 2.0)
        assert "found others on rank 1 than on rank 0" in words


@pytest.mark.parametrize(
    ("problem", "reason"), [("loaded", "given or loaded"), ("measuring", "leave measure()")]
)
def test_a_rank_that_cannot_add_says_why_and_stops_the_others(two_ranks, problem, reason):
    first, second = two_ranks
    kind, words, largest = first[problem]
    assert (kind, largest) == ("RuntimeError", 2.0)
    assert "rank 1 cannot add its scores" in words
    assert second[problem][0] == "RuntimeError"
    assert reason in second[problem][1]


def test_adding_up_twice_is_refused_with_the_sums_kept(two_ranks):
    for found in two_ranks:
        kind, words, largest = found["twice"]
        assert (kind, largest) == ("RuntimeError", 4.0)
        assert "already the sums of 2 ranks" in words


def test_a_group_of_others_is_refused(two_ranks):
    for found in two_ranks:
        kind, words, _ = found["foreign group"]
        assert kind == "ValueError"
        assert "must contain the calling process" in words


def test_a_single_rank_keeps_its_scores(two_ranks):
    for found in two_ranks:
        batches, scores = found["lone"]
        assert batches == 1
        assert torch.equal(scores, torch.full((6,), 2.0))


def test_adding_up_without_a_process_group_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"no process group; call .*init_process_group"):
        scores_by_one_process("abs_of_sum").all_reduce()


# --- memory ---------------------------------------------------------------------------------------

LAYERS, WIDTH = 6, 3000  # 36 MB each: above what malloc keeps for itself when it is freed


def backward_growth(loss: Tensor) -> float:
    """How far a backward pass raises the resident memory, in gradients of one layer."""
    before = resident_bytes()
    with PeakMemory(torch.device("cpu")) as peak:
        loss.backward()
    return (peak.megabytes * 2**20 - before) / (4 * WIDTH * WIDTH)


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here"
)
def test_measuring_needs_memory_for_one_gradient_at_a_time():
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    inputs = torch.randn(2, WIDTH)
    saliency = Saliency(model)
    with saliency.measure():
        model(inputs).sum().backward()  # makes the scores
        assert backward_growth(model(inputs).sum()) < 2.5
    assert backward_growth(model(inputs).sum()) > LAYERS - 1.5  # what is kept without measure()
