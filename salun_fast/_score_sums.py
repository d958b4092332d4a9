"""Running sums of gradients, the raw scores: fp32, by parameter name, refused where not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from salun_fast import ops


class ScoreSums:
    """Σ g, Σ |g| or Σ g² per parameter, in fp32, laid out as the parameter.

    ``count`` is how many batches went in. ``broken`` says why the sums cannot be used: part of a
    batch went in and the rest did not. ``ranks`` is of how many processes they are the sums.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rule: str) -> None:
        self.parameters = parameters
        self.rule = rule
        self.count = 0
        self.ranks = 1
        self.broken: str | None = None
        self._sums: dict[str, Tensor] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums; zeros are allocated at the first call, where the parameters then are."""
        if self._sums is None:
            self._sums = {
                name: torch.zeros_like(parameter.detach(), dtype=torch.float32)
                for name, parameter in self.parameters.items()
            }
        return self._sums

    def add(self, grads: Mapping[str, Tensor], weight: float | Tensor = 1.0) -> None:
        """sums += weight · rule(grad), for the parameters that are given.

        Raises TypeError for a sparse or complex gradient, naming it, before anything is added.
        """
        for name, grad in grads.items():
            check_kind(name, grad)
        sums = self.tensors
        if isinstance(weight, Tensor) or weight != 1.0:
            for name, grad in grads.items():  # one at a time: a weighted copy lives briefly
                ops.accumulate_([sums[name]], [self._weighted(grad, weight)], rule=self.rule)
            return
        for group in _by_device(grads):
            taken = [_taken(grads[name]) for name in group]
            ops.accumulate_([sums[name] for name in group], taken, rule=self.rule, names=group)

    def _weighted(self, grad: Tensor, weight: float | Tensor) -> Tensor:
        factor = weight**0.5 if self.rule == "square" else weight
        if isinstance(factor, Tensor):
            factor = factor.to(grad.device)
        return grad.detach().float() * factor


def peak(grad: Tensor) -> Tensor:
    """max |g|, 0-dim: NaN or infinite exactly where some element is; 0 for an empty tensor."""
    if not grad.numel():
        return grad.new_zeros(())
    low, high = torch.aminmax(grad.detach())  # vectorised, unlike the norm of infinite order
    return torch.maximum(-low, high)


def first_nonfinite(peaks: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor whose :func:`peak` is not finite; one transfer for all of them."""
    found = list(peaks)
    if not found:
        return None
    home = found[0][1].device
    finite = torch.stack([value.float().isfinite().to(home) for _, value in found]).tolist()
    return next((name for (name, _), good in zip(found, finite, strict=True) if not good), None)


def clip_coefficient(grads: Iterable[Tensor], max_norm: float) -> Tensor:
    """min(1, max_norm / (‖g‖ + 1e-6)) over all gradients, as ``clip_grad_norm_`` computes it."""
    norms = [torch.linalg.vector_norm(g.detach(), dtype=torch.float32) for g in grads]
    total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return torch.clamp(max_norm / (total + 1e-6), max=1.0)


def check_kind(name: str, grad: Tensor) -> None:
    """TypeError, naming the parameter, for a sparse or complex gradient."""
    if grad.layout != torch.strided or grad.is_complex():
        found = grad.dtype if grad.is_complex() else grad.layout
        raise TypeError(
            f"the gradient of {name!r} is {found}; expected a dense real one. Build the layer "
            "without sparse=True, or leave the parameter out of Saliency"
        )


def _taken(grad: Tensor) -> Tensor:
    """The gradient in a dtype that the op reads; scores are fp32 whatever it was."""
    return grad.detach() if grad.dtype in ops.FLOATS else grad.detach().float()


def _by_device(grads: Mapping[str, Tensor]) -> list[list[str]]:
    groups: dict[torch.device, list[str]] = {}
    for name, grad in grads.items():
        groups.setdefault(grad.device, []).append(name)
    return list(groups.values())
