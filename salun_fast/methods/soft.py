"""SalUn-soft: a proximal step instead of a saliency mask (SalUn, appendix; SALUN "soft")."""

from __future__ import annotations

from torch import Tensor, nn

from salun_fast import ops


class SoftThreshold:
    """After each dense step the k least changed weights snap back to their anchors exactly, and
    the other changes shrink by the k-th smallest change.

    k falls linearly from N - int(N * density) at the first step to 0 after the last. anchor
    "original" measures changes from the weights as they are now, "epoch" from those at the start
    of each epoch.
    """

    def __init__(self, model: nn.Module, *, density: float, anchor: str, total_steps: int) -> None:
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.names = list(trainable)
        self.parameters: list[Tensor] = [p.detach() for p in trainable.values()]
        self.anchors = [p.clone() for p in self.parameters]
        self.anchored_each_epoch = anchor == "epoch"
        numel = sum(p.numel() for p in self.parameters)
        self.first_k = numel - int(numel * density)
        self.total_steps = total_steps

    def start_epoch(self) -> None:
        if self.anchored_each_epoch:
            for anchor, parameter in zip(self.anchors, self.parameters, strict=True):
                anchor.copy_(parameter)

    def after_step(self, step: int) -> None:
        """``step``: number of the step just taken, from 0."""
        k = int(self.first_k * (self.total_steps - step) / self.total_steps)
        if k > 0:
            ops.soft_threshold_(self.parameters, self.anchors, k, names=self.names)
