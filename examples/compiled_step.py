"""torch.compile: a whole training step, `optimizer.step()` included, as one graph."""

from __future__ import annotations

import copy

import digits
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from salun_fast import SalUnOptimizer

# torch 2.14 traces backward() where this is asked of it; older versions compile step() alone.
torch._dynamo.config.trace_autograd_ops = True


def main(backend: str = "inductor") -> digits.Result:
    data = digits.load()
    before = digits.trained(data)
    model = copy.deepcopy(before)
    lr = torch.tensor(0.05)  # as a tensor it may change without compiling again
    optimizer = SalUnOptimizer(model.named_parameters(), torch.optim.SGD, lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    with optimizer.measure_saliency():
        for x, y in DataLoader(data.forget, batch_size=32):
            F.cross_entropy(model(x), y).backward()
    mask = optimizer.select(digits.DENSITY)

    @torch.compile(fullgraph=True, backend=backend)
    def train(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    for _ in range(4):
        for x, y in DataLoader(data.unlearn, batch_size=32, shuffle=True, drop_last=True):
            train(x, y)
        scheduler.step()
    return digits.report(data, before, model, mask)


if __name__ == "__main__":
    main()
