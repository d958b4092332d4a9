"""Running sums of gradients, the raw scores: fp32, by parameter name, refused where not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from salun_fast import ops
from salun_fast._shards import Layout, beside, common_mesh, local, summing

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


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

    @property
    def mesh(self) -> DeviceMesh | None:
        """Whose processes hold the blocks of sharded parameters."""
        return common_mesh(self.parameters.values())

    def add(
        self,
        grads: Mapping[str, Tensor],
        weight: float | Tensor = 1.0,
        rule: str | None = None,
    ) -> None:
        """sums += weight · rule(grad), for the parameters that are given; ``rule`` None: ours.

        Raises TypeError for a sparse or complex gradient, naming it, before anything is added.
        """
        rule = self.rule if rule is None else rule
        for name, grad in grads.items():
            check_kind(name, grad)
        sums = {name: local(self.tensors[name]) for name in grads}
        blocks = {name: beside(grad, self.parameters[name]) for name, grad in grads.items()}
        if isinstance(weight, Tensor) or weight != 1.0:
            for name, grad in blocks.items():  # one at a time: a weighted copy lives briefly
                ops.accumulate_([sums[name]], [_weighted(grad, weight, rule)], rule=rule)
            return
        for group in _by_device(blocks):
            taken = [_taken(blocks[name]) for name in group]
            ops.accumulate_([sums[name] for name in group], taken, rule=rule, names=group)


def _weighted(grad: Tensor, weight: float | Tensor, rule: str) -> Tensor:
    factor = weight**0.5 if rule == "square" else weight
    if isinstance(factor, Tensor):
        factor = factor.to(grad.device)
    return grad.detach().float() * factor


def peak(grad: Tensor) -> Tensor:
    """max |g|, 0-dim: NaN or infinite exactly where some element is; 0 for an empty tensor. Of a
    sharded one: of the block here."""
    grad = local(grad)
    if not grad.numel():
        return grad.new_zeros(())
    low, high = torch.aminmax(grad.detach())  # vectorised, unlike the norm of infinite order
    return torch.maximum(-low, high)


def first_nonfinite(
    peaks: Iterable[tuple[str, Tensor]], mesh: DeviceMesh | None = None
) -> str | None:
    """Name of the first tensor whose :func:`peak` is not finite; one transfer for all of them.

    With ``mesh``: on any of its processes, and each gets the same answer.
    """
    found = list(peaks)
    if not found:
        return None
    home = found[0][1].device
    good = torch.stack([value.float().isfinite().to(home) for _, value in found])
    if mesh is not None:
        bad = (~good).long()
        summing(mesh)(bad)
        good = bad == 0
    pairs = zip(found, good.tolist(), strict=True)
    return next((name for (name, _), fine in pairs if not fine), None)


def clip_coefficient(
    grads: Iterable[Tensor], max_norm: float, mesh: DeviceMesh | None = None
) -> Tensor:
    """min(1, max_norm / (‖g‖ + 1e-6)) over all gradients, as ``clip_grad_norm_`` computes it.

    With ``mesh`` the norm is that of the whole tensors, each process knowing its blocks.
    """
    norms = [
        torch.linalg.vector_norm(local(g.detach()), dtype=torch.float32)
        * (mesh is None or Layout.of(g, mesh).block().counted)
        for g in grads
    ]
    total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    if mesh is not None:
        square = total.square()
        summing(mesh)(square)
        total = square.sqrt()
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
