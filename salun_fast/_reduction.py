"""Scores that are no plain sum, under FSDP: |g| and g² belong before gradients are reduced.

FSDP2 hands out gradients that are averaged over processes already, and lets a module's
reduce-scatter be replaced: ours applies the rule to each process's own gradient, then adds up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def reduced_by(
    rule: str, module: nn.Module | None, mesh: DeviceMesh | None, clip_norm: float | None
) -> Reduction:
    """How a measurement of ``module`` comes by its sums over the processes of ``mesh``.

    Raises ValueError where the rule would come too late.
    """
    several = mesh is not None and mesh.size() > 1
    # A clipped sum is left to FSDP's average, so that it does not depend on who knows the module.
    averaged = rule == "sum" and clip_norm is not None
    wrapped = _fsdp_modules(module) if several and module is not None and not averaged else []
    if several and rule != "sum":
        if not wrapped:
            raise ValueError(
                "score: |g| and g² of each process must be taken before FSDP averages gradients, "
                "which needs the module: expected it, found parameters alone. Use Saliency(model, "
                "score=...), or measure_saliency(score, module=model)"
            )
        if mesh is not None and mesh.ndim > 1 and mesh.size(mesh.ndim - 1) == 1:
            raise ValueError(
                f"score: on a mesh of shape {tuple(mesh.shape)} nothing is sharded, and FSDP "
                "averages copies where |g| and g² cannot be taken before; use 'abs_of_sum', or a "
                "mesh whose last dimension shards"
            )
        if clip_norm is not None:
            raise ValueError(
                "clip_norm: expected None with score='sum_of_abs' or 'sum_of_squares' under FSDP, "
                "where no process sees a whole gradient before it is reduced; use 'abs_of_sum'"
            )
    return Reduction(rule, wrapped)


class Reduction:
    """Replaces the reduce-scatter of FSDP modules while scores are measured.

    ``rule_left``: what is still to be done to the gradients that arrive.
    """

    def __init__(self, rule: str, modules: list[Any]) -> None:
        self._rule = rule
        self._modules = modules
        self._before: list[Any] = []
        self.rule_left = "sum" if modules else rule

    def install(self) -> None:
        self._before = [_param_groups(module)[0]._reduce_scatter_comm for module in self._modules]
        for module, comm in zip(self._modules, self._before, strict=True):
            module.set_custom_reduce_scatter(_RuleFirst(comm, self._rule))

    def remove(self) -> None:
        for module, comm in zip(self._modules, self._before, strict=True):
            module.set_custom_reduce_scatter(comm)


class _RuleFirst:
    """A reduce-scatter (FSDP2's interface): the rule on what goes in, then the plain sum."""

    def __init__(self, comm: Any, rule: str) -> None:
        self._comm = comm
        self._rule = rule

    def allocate(self, *arguments: Any, **options: Any) -> Tensor:
        buffer: Tensor = self._comm.allocate(*arguments, **options)
        return buffer

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        if self._rule == "abs":
            input_tensor.abs_()
        elif self._rule == "square":
            input_tensor.square_()
        return self._comm(
            output_tensor=output_tensor,
            input_tensor=input_tensor,
            group=group,
            op=dist.ReduceOp.SUM,
            async_op=async_op,
        )


def _fsdp_modules(module: nn.Module) -> list[Any]:
    """Those that reduce gradients of their own."""
    from torch.distributed.fsdp import FSDPModule

    found = [m for m in module.modules() if isinstance(m, FSDPModule)]
    return [m for m in found if _param_groups(m)]


def _param_groups(module: Any) -> list[Any]:
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # older torch: one group at most
        groups = [group for group in [state._fsdp_param_group] if group is not None]
    return list(groups)
