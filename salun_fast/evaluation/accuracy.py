"""What a classifier says about a set of images, and how often it is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salun_fast._eval_mode import eval_mode
from salun_fast.data import Batches, ImageSet

EVAL_BATCH = 512


@dataclass(frozen=True)
class Outputs:
    """Per image, on the CPU: predicted class (int64 [n]), true label (int64 [n]) and the softmax
    probability of the true label (fp32 [n])."""

    predicted: Tensor
    labels: Tensor
    confidence: Tensor

    @property
    def accuracy(self) -> float:
        """Percent; nan for an empty set."""
        return accuracy(self.predicted, self.labels)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Percent of ``predicted == labels``; nan for an empty set."""
    if len(labels) == 0:
        return float("nan")
    return 100.0 * float((predicted == labels).double().mean())


@torch.no_grad()
def outputs(model: nn.Module, data: ImageSet, *, batch_size: int = EVAL_BATCH) -> Outputs:
    """One pass in eval mode on the model's device; every module's training flag is put back."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts: list[tuple[Tensor, Tensor]] = []
    with eval_mode(model):
        for images, labels in Batches(data, batch_size, channels_last=is_channels_last(model)):
            probabilities = model(images.to(device)).float().softmax(dim=1)
            true = probabilities.gather(1, labels.to(device)[:, None]).flatten()
            parts.append((probabilities.argmax(dim=1).cpu(), true.cpu()))
    if not parts:
        nothing = torch.empty(0, dtype=torch.int64)
        return Outputs(nothing, nothing, torch.empty(0))
    return Outputs(
        torch.cat([p for p, _ in parts]),
        data.labels.long().cpu(),
        torch.cat([c for _, c in parts]),
    )


def is_channels_last(model: nn.Module) -> bool:
    """Whether the model's convolutions are stored channels last, so that its inputs should be."""
    return any(
        p.dim() == 4
        and not p.is_contiguous()
        and p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
    )
