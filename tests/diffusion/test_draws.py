"""Draws are functions of (seed, step) alone; every sample comes once per pass."""

import pytest
import torch

from salun_fast.diffusion.draws import Order, generator_for, seed_of


def drawn(order, steps):
    return torch.cat([order.indices(step) for step in range(steps)])


@pytest.mark.parametrize(("count", "size"), [(10, 5), (10, 4), (7, 3), (5, 5), (1, 1)])
def test_every_sample_is_seen_once_before_any_is_seen_again(count, size):
    steps = -(-3 * count // size)
    seen = drawn(Order(count, size, seed=0, purpose="forget"), steps)
    assert len(seen) == steps * size
    for part in torch.split(seen, count)[:3]:
        assert part.sort().values.tolist() == list(range(count))


def test_a_batch_spans_two_passes():
    order = Order(5, 4, seed=0, purpose="x")
    first, second = order.indices(0), order.indices(1)
    assert set(range(5)) - set(first.tolist()) == {int(second[0])}


def test_a_batch_larger_than_the_data_set_goes_round_it():
    seen = Order(3, 8, seed=0, purpose="x").indices(1)  # places 8..15: the third pass onwards
    assert len(seen) == 8
    assert sorted(seen[1:4].tolist()) == sorted(seen[4:7].tolist()) == [0, 1, 2]


def test_a_step_draws_the_same_whatever_was_asked_before():
    fresh = [Order(7, 3, 5, "x").indices(step) for step in range(20)]
    order = Order(7, 3, 5, "x")
    backwards = [order.indices(step) for step in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(fresh, reversed(backwards), strict=True))


def test_passes_seeds_and_purposes_have_orders_of_their_own():
    first, second = torch.split(drawn(Order(50, 50, 0, "x"), 2), 50)
    assert not torch.equal(first, second)
    for other in (Order(50, 50, 1, "x"), Order(50, 50, 0, "y")):
        assert not torch.equal(other.indices(0), first)


def test_seeds_fit_torch_and_do_not_collide():
    purposes = [(seed, kind, n) for seed in range(5) for kind in ("a", "b") for n in range(50)]
    seeds = {seed_of(*purpose) for purpose in purposes}
    assert len(seeds) == len(purposes)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)


def test_a_generator_is_a_function_of_its_purpose_and_leaves_torchs_alone():
    state = torch.get_rng_state()
    one, other = (torch.randn(4, generator=generator_for(3, "noise", 7)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
