"""Launchers that give the optimizer other parameters than it was made for, or only some of them.

accelerate shards them (FSDP2), ZeroRedundancyOptimizer spreads them over processes: the mask acts.
DeepSpeed ZeRO and FSDP1 flatten them: an error, and nothing moves.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from salun_fast.distributed import ShardedMask
from salun_fast.mask import MaskMismatchError, SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from tests.conftest import clones, same_bytes
from tests.distributed.jobs import Net, batches, full, loss_of, mesh_of, reference_scores
from tests.processes import run_ranks


def trained_alone(world: int) -> Net:
    """In one process, with a gradient that is the mean over processes, as DDP's and FSDP's is."""
    model = Net()
    optimizer = adamw(model.named_parameters(), mask=reference_scores("abs_of_sum", 1).mask(0.4))
    (loss_of(model, next(batches())) / world).backward()
    step_thrice(optimizer)
    return model


def step_thrice(optimizer: torch.optim.Optimizer) -> None:
    """On one gradient: that of integer weights is exact however it is added up."""
    for _ in range(3):
        optimizer.step()


def adamw(params: Any, **options: Any) -> SalUnOptimizer:
    return SalUnOptimizer(params, torch.optim.AdamW, lr=0.01, weight_decay=0.1, **options)


def assert_as_alone(model: nn.Module, world: int) -> None:
    alone = trained_alone(world)
    assert not same_bytes(alone.first.weight, Net().first.weight)
    for (name, expected), param in zip(alone.named_parameters(), model.parameters(), strict=True):
        assert same_bytes(expected.detach(), full(param)), name


# --- accelerate's FSDP2 ---------------------------------------------------------------------------


def switch_parameters(rank: int, world: int) -> None:
    """As Accelerator.prepare does: placeholders, then DTensors in the place of the parameters."""
    for when in ("before", "after"):
        model = Net()
        optimizer = adamw(model.named_parameters())
        if when == "before":
            optimizer.set_mask(reference_scores("abs_of_sum", 1).mask(0.4))
        switch_as_accelerate(model, optimizer, mesh_of(world))
        if when == "after":
            with optimizer.measure_saliency():
                for x in batches(rank, world):
                    loss_of(model, x).backward()
            assert isinstance(optimizer.select(0.4), ShardedMask)
        loss_of(model, next(batches(rank, world))).backward()
        step_thrice(optimizer)
        assert_as_alone(model, world)


def switch_as_accelerate(model: nn.Module, optimizer: SalUnOptimizer, mesh: Any) -> None:
    from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters

    pointers = {name: param.data_ptr() for name, param in model.named_parameters()}
    for group in optimizer.param_groups:
        for index, param in enumerate(group["params"]):
            group["params"][index] = torch.empty(1)
            group["params"][index].data_ptr = param.data_ptr()
    fully_shard(model, mesh=mesh)
    mapping = {pointers[name]: param for name, param in model.named_parameters()}
    fsdp2_switch_optimizer_parameters(optimizer, mapping)


def test_the_mask_acts_on_parameters_that_accelerate_sharded(tmp_path):
    run_ranks(switch_parameters, 2, tmp_path)


# --- ZeroRedundancyOptimizer ----------------------------------------------------------------------


def spread_by_zero(rank: int, world: int) -> None:
    """One group per parameter keeps their names; each process masks and steps its own."""
    model = DistributedDataParallel(Net())
    zero = zero_redundancy([{"params": [p], "param_names": [n]} for n, p in named(model)])
    salun = zero.optim
    assert 0 < len(list(salun._named())) < len(list(model.parameters()))
    salun.set_mask(reference_scores("abs_of_sum", 1).mask(0.4), strict=False)
    loss_of(model, next(batches(rank, world))).backward()
    step_thrice(zero)
    assert_as_alone(model, world)

    group = {"params": [p for _, p in named(model)], "param_names": [n for n, _ in named(model)]}
    with pytest.raises(ValueError, match="one group per parameter"):
        zero_redundancy([group])


def zero_redundancy(params: Any) -> ZeroRedundancyOptimizer:
    make = functools.partial(SalUnOptimizer, optimizer_class=torch.optim.AdamW)
    return ZeroRedundancyOptimizer(params, make, lr=0.01, weight_decay=0.1)


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


def test_the_mask_acts_within_zero_redundancy_optimizer(tmp_path):
    run_ranks(spread_by_zero, 2, tmp_path)


@pytest.mark.parametrize("given", [["a"], ["a", "b", "c"]], ids=len)
def test_a_group_has_as_many_names_as_parameters(given):
    group = {"params": [nn.Parameter(torch.ones(2)) for _ in range(2)], "param_names": given}
    with pytest.raises(ValueError, match=f"2 parameters and {len(given)} param_names"):
        adamw([group])
    optimizer = adamw([("first", nn.Parameter(torch.ones(2)))])
    with pytest.raises(ValueError, match=f"2 parameters and {len(given)} param_names"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


# --- DeepSpeed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [["a", "b"], ["b"]], ids=["all", "the second"])
@pytest.mark.parametrize("names", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.NAdam])
def test_a_flat_tensor_in_place_of_the_parameters_is_refused(optimizer_class, names, masked):
    """DeepSpeed ZeRO steps one flat fp32 tensor of all parameters. A mask that leaves the first
    parameter free must not let the whole tensor move in its place."""
    params = {"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(4, 2))}
    keys = {"a": "a", "b": "b"} if names else {"a": "0.0", "b": "0.1"}
    mask = {keys[name]: torch.rand_like(params[name]) < 0.5 for name in masked}
    mask[keys["b"]][0, 0] = True
    optimizer = SalUnOptimizer(params.items() if names else params.values(), optimizer_class)
    optimizer.set_mask(SaliencyMask.from_dict(mask), strict=False)
    for step in range(2):
        if step == 1:  # also where steps went well before
            optimizer.param_groups[0]["params"] = list(params.values())
            for param in params.values():
                param.grad = torch.ones_like(param)
            optimizer.step()
        flat = torch.cat([param.detach().flatten() for param in params.values()])
        flat.requires_grad_().grad = torch.ones_like(flat)
        before, state = clones([flat.detach()]), len(optimizer.state)
        optimizer.param_groups[0]["params"] = [flat]
        with pytest.raises(
            MaskMismatchError, match=r"DeepSpeed.*Use FSDP2 \(fully_shard\), or DDP"
        ):
            optimizer.step()
        assert same_bytes(flat.detach(), before[0])
        assert len(optimizer.state) == state
