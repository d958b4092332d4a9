"""DistributedDataParallel: `torchrun --nproc-per-node 2 examples/ddp.py`.

Each process measures its share of the forget data; `select` adds the scores up, so that all
processes get one mask and stay alike.
"""

from __future__ import annotations

import copy

import digits
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from salun_fast import SalUnOptimizer


def main() -> digits.Result:
    data = digits.load()
    before = digits.trained(data)
    model = DistributedDataParallel(copy.deepcopy(before))
    optimizer = SalUnOptimizer(model.named_parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)

    forget = DataLoader(data.forget, 32, sampler=DistributedSampler(data.forget, shuffle=False))
    with optimizer.measure_saliency():
        for x, y in forget:
            F.cross_entropy(model(x), y).backward()
    mask = optimizer.select(digits.DENSITY)  # every process calls this

    sampler = DistributedSampler(data.unlearn)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for x, y in DataLoader(data.unlearn, 16, sampler=sampler):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return digits.report(data, before, model.module, mask)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
