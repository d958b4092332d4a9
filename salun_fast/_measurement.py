"""Fold gradients into scores as backward() makes them, so that none is ever kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from salun_fast._reduction import reduced_by
from salun_fast._score_sums import ScoreSums, check_kind, clip_coefficient, first_nonfinite, peak

_ADVICE = "find what made it (loss scale, learning rate, a bad sample) and measure again without it"


class Measurement:
    """Context in which each backward() adds its gradients to the sums and leaves no ``.grad``.

    Without ``clip_norm`` every gradient is added and freed the moment it is complete. With it,
    the gradients of a backward are held until its end and scaled to that norm at most.
    On leaving, the ``.grad`` of before is put back, and so are the buffers of ``module``.
    ``weight`` scales what the next backward adds. Where FSDP reduces gradients between processes,
    the rule is applied before it does so, which needs ``module``.
    """

    def __init__(
        self, sums: ScoreSums, *, clip_norm: float | None = None, module: nn.Module | None = None
    ) -> None:
        self.weight = 1.0
        self._mesh = sums.mesh
        self._reduction = reduced_by(sums.rule, module, sums.mesh, clip_norm)
        self._sums = sums
        self._clip_norm = clip_norm
        self._buffers = _Buffers(module)
        self._open = False  # a backward has begun and has not ended
        self._task = -1  # the autograd engine's number of that backward
        self._peaks: list[tuple[str, Tensor]] = []
        self._held: dict[str, Tensor] = {}

    def __enter__(self) -> Measurement:
        parameters = self._sums.parameters
        self._stash = [(p, p.grad) for p in parameters.values()]
        self._reached: set[str] = set()
        self._buffers.keep()
        for parameter in parameters.values():
            parameter.grad = None
        self._hooks = [call_after(p, self._hook(name)) for name, p in parameters.items()]
        self._reduction.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reduction.remove()
        for hook in self._hooks:
            hook.remove()
        missed = past_hooks(
            (n, p, None) for n, p in self._sums.parameters.items() if n not in self._reached
        )
        for parameter, grad in self._stash:
            parameter.grad = grad
        self._buffers.restore()
        self._drop_unfinished()
        if missed is not None and error is None:
            self._sums.broken = f"{missed}; such batches are not in the scores"
            raise RuntimeError(self._sums.broken)

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def fold(parameter: Tensor) -> None:
            self._reached.add(name)
            grad, parameter.grad = parameter.grad, None
            if grad is not None:
                self._take(name, grad)

        return fold

    def _take(self, name: str, grad: Tensor) -> None:
        check_kind(name, grad)
        self._begin()
        if self._clip_norm is None:
            self._peaks.append((name, peak(grad)))
            self._sums.add({name: grad}, self.weight, self._reduction.rule_left)
        else:
            self._check_same_backward()
            held = self._held.get(name)
            # A copy: DDP clears its buckets, of which this may be a view, before the end.
            self._held[name] = grad.clone() if held is None else held + grad

    def _begin(self) -> None:
        """Within a backward, of which this may be the first that is heard."""
        if self._open:
            return
        _refuse_compiled_autograd()
        self._open = True
        # Runs when this backward() is over, on success only; FSDP and DDP rely on it too.
        variable: Any = torch.autograd.Variable
        variable._execution_engine.queue_callback(self._finish)
        self._task = torch._C._current_graph_task_id()

    def _check_same_backward(self) -> None:
        """A norm over parts of two backward passes would be silently wrong."""
        if torch._C._current_graph_task_id() != self._task:
            self._close()
            raise RuntimeError(
                "a backward() began before the one before it had ended, so clip_norm has no whole "
                "gradient to measure; nothing of either was added. If the earlier one failed, "
                "measure again; if the model uses activation checkpointing, set use_reentrant=False"
            )

    def _finish(self) -> None:
        if not self._open:  # a second device's thread queued the same
            return
        # In one order, as the norm rounds by it: a compiled backward() has another one.
        held = {name: self._held[name] for name in self._sums.parameters if name in self._held}
        bad = first_nonfinite(self._all_peaks(), self._mesh)
        if bad is not None:
            self._refuse(bad)
        if self._clip_norm is not None:
            coefficient = clip_coefficient(held.values(), self._clip_norm, self._mesh)
            self._sums.add(held, coefficient * self.weight)
        self._close()
        self._sums.count += 1

    def _all_peaks(self) -> list[tuple[str, Tensor]]:
        """In an order that all processes share, if there are several."""
        if self._clip_norm is not None:
            self._peaks = [(name, peak(grad)) for name, grad in self._held.items()]
        if self._mesh is None:
            return self._peaks
        found = dict(self._peaks)
        absent = torch.zeros((), device=self._peaks[0][1].device)
        return [(name, found.get(name, absent)) for name in self._sums.parameters]

    def _refuse(self, name: str) -> None:
        problem = f"batch {self._sums.count + 1}: the gradient of {name!r} holds NaN or infinity"
        if self._clip_norm is None:
            self._sums.broken = f"{problem}, and part of that batch was already added"
        self._close()
        raise ValueError(f"{problem}; {_ADVICE}")

    def _close(self) -> None:
        self._open = False
        self._peaks, self._held = [], {}

    def _drop_unfinished(self) -> None:
        """A backward that raised midway leaves sums with part of a batch, if it was not held."""
        if self._open and self._clip_norm is None and self._sums.broken is None:
            self._sums.broken = (
                f"batch {self._sums.count + 1} was interrupted in backward(), and part of it was "
                "already added"
            )
        self._close()


def _refuse_compiled_autograd() -> None:
    """It runs hooks, but not what waits for the end of a backward()."""
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    if getattr(compiled, "in_compiled_autograd_region", False):
        raise RuntimeError(
            "saliency was to be measured while torch._dynamo.config.compiled_autograd is on, which "
            "does not say when a backward() is over; nothing was added. Set it to False while "
            "measuring: compiled models and losses need nothing of it"
        )


def past_hooks(unreached: Iterable[tuple[str, Any, Tensor | None]]) -> str | None:
    """What is wrong where a parameter of which no hook ran has a gradient: (name, it, the one
    before). Where dynamo traces ``backward()``, it leaves hooks out."""
    name = next((n for n, p, old in unreached if p.grad is not None and p.grad is not old), None)
    if name is None:
        return None
    return (
        f"{name!r} got a gradient past the hooks of backward(), which torch.compile traced "
        "(trace_autograd_ops). Compile the model or the loss alone, and call backward() on what "
        "they return"
    )


def call_after(parameter: Any, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Call ``hook(parameter)`` whenever a backward() has completed its ``.grad``."""
    if "torch._dynamo" in sys.modules:  # compiled autograd would trace it, anew for each gradient
        hook = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)
    return handle


class _Buffers:
    """The buffers of a module, values and identity, to be put back as they were."""

    def __init__(self, module: nn.Module | None) -> None:
        self._modules = [] if module is None else list(module.modules())
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def keep(self) -> None:
        self._kept = [
            (module, name, buffer, buffer.detach().clone())
            for module in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for module, name, buffer, value in self._kept:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):  # an equal one keeps its version counter
                buffer.copy_(value)
        self._kept = []
