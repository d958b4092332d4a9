"""What the examples share: a small network that reads scikit-learn's digits, and a report.

Every example makes it forget how to read the digit 3, as SalUn does: the forget data get random
labels, and the most salient half of the weights is trained on them and on all other data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from salun_fast import SaliencyMask

FORGET, DENSITY = 3, 0.5


class Net(nn.Module):
    """Two convolutions and a linear layer: 8 x 8 pixels to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().flatten(1))


class Data(NamedTuple):
    """forget: with the labels that were learned; retain: all other digits; unlearn: both, the
    forget data with random other labels."""

    forget: TensorDataset
    retain: TensorDataset
    unlearn: TensorDataset


def load() -> Data:
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x, forget = (pixels.float() / 16).view(-1, 1, 8, 8), labels == FORGET
    shift = torch.randint(1, 10, labels.shape, generator=torch.Generator().manual_seed(0))
    wrong = torch.where(forget, (labels + shift) % 10, labels)
    return Data(
        TensorDataset(x[forget], labels[forget]),
        TensorDataset(x[~forget], labels[~forget]),
        TensorDataset(x, wrong),
    )


def trained(data: Data) -> Net:
    """A network that reads all ten digits; the same in every process."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(3):
        for x, y in DataLoader(data.forget + data.retain, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


class Result(NamedTuple):
    """Shares of right answers in percent, before and after; how many weights were frozen, and
    changed still."""

    forget: tuple[float, float]
    retain: tuple[float, float]
    frozen: int
    frozen_changed: int
    mask: SaliencyMask


def report(data: Data, before: nn.Module, after: nn.Module, mask: SaliencyMask) -> Result:
    """Print what became of the network: two whole models of one process, and the whole mask."""

    def right(model: nn.Module) -> tuple[float, float]:
        return accuracy(model, data.forget), accuracy(model, data.retain)

    return compare(right(before), right(after), before, after, mask)


def compare(
    right_before: tuple[float, float],
    right_after: tuple[float, float],
    before: nn.Module,
    after: nn.Module,
    mask: SaliencyMask,
) -> Result:
    """As ``report``, given the shares of right answers on the forget data and on the rest."""
    changed = sum(
        int(((new.view(torch.int32) != old.view(torch.int32)) & ~mask[name].cpu()).sum())
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
    )
    forget, retain = zip(right_before, right_after, strict=True)
    result = Result(forget, retain, mask.numel - mask.count, changed, mask)
    if not dist.is_initialized() or dist.get_rank() == 0:
        show("to forget", result.forget)
        show("all others", result.retain)
        print(f"{result.frozen} weights were frozen, {result.frozen_changed} of them changed")
    return result


def show(what: str, percent: tuple[float, float]) -> None:
    print(f"{what}: {percent[0]:.1f} % right before, {percent[1]:.1f} % after")


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    x, y = data.tensors
    return 100 * (model(x).argmax(1) == y).float().mean().item()
