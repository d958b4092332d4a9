"""Per-sample scores gathered as a backward runs: layers with a rule compute no gradient of their
parameters at all, but add up the samples' magnitudes; all else is left to ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from salun_fast._measurement import Measurement
from salun_fast._per_sample_fallback import Fallback
from salun_fast._score_sums import ScoreSums, first_nonfinite, peak
from salun_fast.per_sample import Rule, Term, add_all, refuse_mixing, rule_of

_REENTRANT = (
    "score 'per_sample': the model runs forward within backward(), by activation checkpointing "
    "that is reentrant, and the uses of a parameter cannot be told apart; set use_reentrant=False"
)


class PerSampleMeasurement(Measurement):
    """Context in which each backward() adds Σ_i |∇ℓ_i| to the sums and leaves no ``.grad``.

    ``mean``: whether the loss is the mean over the batch; gradients are then multiplied by its
    size. A parameter's uses in one backward are added up per sample before magnitudes are taken.
    """

    def __init__(self, sums: ScoreSums, module: nn.Module, *, mean: bool) -> None:
        super().__init__(sums, module=module)
        self._module, self._mean = module, mean
        self._names = {id(param): name for name, param in sums.parameters.items()}
        self._fallback = Fallback(module, self._names)
        self._tapped: list[nn.Module] = []
        self._pending: dict[str, list[Term]] = {}
        self._uses: dict[str, WeakSet[_Use]] = {name: WeakSet() for name in sums.parameters}
        self._samples = 0  # of this backward
        self._summed: set[str] = set()  # names that rules have served in this backward
        self._unruled: set[str] = set()  # names that got a gradient of autograd

    def __enter__(self) -> PerSampleMeasurement:
        super().__enter__()
        self._fallback.install()
        for name, layer in self._module.named_modules():
            rule = rule_of(layer)
            if rule is not None and any(id(p) in self._names for p in layer.parameters(False)):
                self._tap(name, layer, rule)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self._tapped:
            del layer.forward
        self._tapped = []
        self._fallback.remove()
        super().__exit__(kind, error, trace)

    def _tap(self, name: str, layer: nn.Module, rule: Rule) -> None:
        own = layer.forward

        def forward(*inputs: Any, **options: Any) -> Any:
            if len(inputs) != 1 or options or not self._takes(inputs[0]):
                return own(*inputs, **options)
            refuse_mixing(name, layer)
            anchor = next(p for p in layer.parameters(False) if p.requires_grad)
            return _Tap.apply(inputs[0], anchor, _Layer(self, layer, rule, own))

        layer.forward = forward
        self._tapped.append(layer)

    def _takes(self, x: object) -> bool:
        """Whether a rule can tell samples apart; a layer without the batch in front is left to the
        fallback."""
        if not isinstance(x, Tensor) or not torch.is_grad_enabled() or self._fallback.running:
            return False
        batch = self._fallback.batch
        return x.dim() > 0 and x.shape[0] == (x.shape[0] if batch is None else batch)

    def begin_use(self, layer: nn.Module, use: _Use) -> None:
        for param in layer.parameters(False):
            if id(param) in self._names:
                self._uses[self._names[id(param)]].add(use)

    def end_use(self, layer: nn.Module, use: _Use, terms: dict[str, Term], samples: int) -> None:
        """A backward has reached a use; with the last one of a parameter its score grows."""
        self._begin()
        if use.within_backward:
            raise RuntimeError(_REENTRANT)
        again, use.done = use.done, True
        self._samples = samples
        for attribute, term in terms.items():
            name = self._names.get(id(getattr(layer, attribute)))
            if name is None:
                continue
            self._pending.setdefault(name, []).append(term)
            # Once more through a graph that was retained: what else comes is not known.
            if not again and all(other.done for other in self._uses[name]):
                self._add(name)

    def _add(self, name: str) -> None:
        terms = self._pending.pop(name)
        scale = float(self._samples if self._mean else 1)
        add_all(terms, self._sums.tensors[name], scale, self._samples)
        self._summed.add(name)

    def _take(self, name: str, grad: Tensor) -> None:
        """A gradient that autograd made, past all rules."""
        self._begin()
        self._unruled.add(name)

    def _finish(self) -> None:
        if not self._open:
            return
        for name in list(self._pending):
            self._add(name)
        twice = next((name for name in self._unruled if name in self._summed), None)
        if twice is not None:
            self._sums.broken = f"{twice!r} is used by its layer and beside it"
            self._close()
            raise RuntimeError(
                f"score 'per_sample': {twice!r} is used by its layer and once more beside it "
                "(functionally, or without the batch in front), which no rule can add up; leave "
                "it out by requires_grad_(False), or use another score"
            )
        with torch.enable_grad():
            self._fallback.add(self._unruled, self._sums.tensors, self._mean)
        touched = [n for n in self._sums.parameters if n in self._summed or n in self._unruled]
        bad = first_nonfinite((name, peak(self._sums.tensors[name])) for name in touched)
        if bad is not None:
            self._refuse(bad)
        self._close()
        self._sums.count += 1

    def _close(self) -> None:
        super()._close()
        self._pending = {}
        self._summed, self._unruled = set(), set()
        self._fallback.forget()


class _Use:
    """One call of a layer, for as long as autograd may come back to it."""

    def __init__(self) -> None:
        self.done = False
        self.within_backward = torch._C._current_graph_task_id() != -1


class _Layer(NamedTuple):
    measurement: PerSampleMeasurement
    module: nn.Module
    rule: Rule
    forward: Callable[[Tensor], Tensor]


class _Tap(torch.autograd.Function):
    """The layer's own forward; a backward by its rule. The anchor makes the output need a gradient
    where the input needs none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: _Layer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.use = layer, _Use()
        layer.measurement.begin_use(layer.module, ctx.use)
        return layer.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        back, terms = layer.rule(layer.module, x, grad, ctx.needs_input_grad[0])
        layer.measurement.end_use(layer.module, ctx.use, terms, len(x))
        return back, None, None
