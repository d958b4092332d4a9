"""FSDP2: `torchrun --nproc-per-node 2 examples/fsdp2.py`.

Shard the model first, then make the optimizer. Each process holds the scores, the mask's bits and
the state of its own blocks; `select` compares them over all processes by histograms.
"""

from __future__ import annotations

import copy
from pathlib import Path

import digits
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from salun_fast import SalUnOptimizer
from salun_fast.distributed import MaskState


def main(folder: Path = Path("runs/fsdp2")) -> digits.Result:
    data = digits.load()
    before = digits.trained(data)
    model = copy.deepcopy(before)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # "cuda" with nccl
    fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = SalUnOptimizer(model.named_parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)

    forget = DataLoader(data.forget, 32, sampler=DistributedSampler(data.forget, shuffle=False))
    with optimizer.measure_saliency():
        for x, y in forget:
            F.cross_entropy(model(x), y).backward()
    optimizer.select(digits.DENSITY)  # every process calls this

    for epoch in range(4):
        if epoch == 2:  # stop and go on
            dcp.save(state_of(model, optimizer), checkpoint_id=folder)
            optimizer.set_mask(None)  # lost, as after a crash
            state = state_of(model, optimizer)
            dcp.load(state, checkpoint_id=folder)  # puts the mask in force
            set_state_dict(
                model, optimizer,
                model_state_dict=state["model"], optim_state_dict=state["optimizer"],
            )  # fmt: skip
        sampler = DistributedSampler(data.unlearn, seed=epoch)
        for x, y in DataLoader(data.unlearn, 16, sampler=sampler):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    after = digits.Net()
    after.load_state_dict(
        get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    )
    return digits.report(data, before, after, optimizer.mask.whole())


def state_of(model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": state, "mask": MaskState(optimizer)}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
