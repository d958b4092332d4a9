"""Per-sample gradients by ``torch.func``, for parameters of which no rule knows: the module that
owns them, or else the whole model, is run once more on some samples at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from salun_fast.per_sample import rule_of

_BYTES = 64 << 20  # of gradients that exist at a time


class PerSampleFallbackWarning(UserWarning):
    """Some parameters are scored by torch.func, which runs their module once more."""


class Call:
    """One call of a module: what went in, and what came back to its outputs."""

    def __init__(self, inputs: Any, outputs: Any) -> None:
        leaves, self.spec = tree_flatten(inputs)
        self.leaves = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
        flat = [y for y in tree_flatten(outputs)[0] if isinstance(y, Tensor)]
        self.grads: list[Tensor | None] = [None] * len(flat)
        for index, output in enumerate(flat):
            if output.requires_grad:
                output.register_hook(self._keeper(index))  # type: ignore[no-untyped-call]

    def _keeper(self, index: int) -> Any:
        def keep(grad: Tensor) -> None:
            known = self.grads[index]
            self.grads[index] = grad.detach() if known is None else known + grad.detach()

        return keep

    def is_of(self, batch: int) -> bool:
        """Whether inputs and outputs that matter have the samples in front."""
        grads = [grad for grad in self.grads if grad is not None]
        held = [x for x in self.leaves if _has_samples(x, batch)]
        return bool(grads and held) and all(_has_samples(grad, batch) for grad in grads)


class Fallback:
    """Watches the model and each module that owns parameters without a rule."""

    def __init__(self, model: nn.Module, names: Mapping[int, str]) -> None:
        self.running = False
        self.batch: int | None = None  # samples of the model's last call
        self._model, self._names = model, names
        self._owners: dict[str, nn.Module] = {}
        self._calls: dict[nn.Module, list[Call]] = {}
        self._hooks: list[RemovableHandle] = []
        self._said = False

    def install(self) -> None:
        self._owners = self._find_owners()
        watched = {self._model: None, **dict.fromkeys(self._owners.values())}
        for module in watched:
            self._hooks.append(module.register_forward_hook(self._record, with_kwargs=True))
        self._hooks.append(
            self._model.register_forward_pre_hook(self._count_samples, with_kwargs=True)
        )

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.forget()

    def forget(self) -> None:
        self._calls, self.batch = {}, None

    def add(self, names: Iterable[str], sums: Mapping[str, Tensor], mean: bool) -> None:
        """Σ_i |∇ℓ_i| of these parameters, of the backward that has just ended."""
        chosen = set(names)
        if not chosen:
            return
        modules = {name: self._module_for(name) for name in sorted(chosen)}
        groups: dict[nn.Module, dict[str, str]] = {}  # per module: its own name -> the score's
        for module in dict.fromkeys(modules.values()):
            named = ((own, self._names.get(id(p), "")) for own, p in module.named_parameters())
            groups[module] = {own: name for own, name in named if modules.get(name) is module}
        self._say(groups)
        self.running = True
        try:
            for module, owned in groups.items():
                self._add_module(module, owned, sums, mean)
        finally:
            self.running = False

    def _add_module(
        self, module: nn.Module, owned: Mapping[str, str], sums: Mapping[str, Tensor], mean: bool
    ) -> None:
        params = dict(module.named_parameters())
        chosen = {local: params[local].detach() for local in owned}
        bytes_each = sum(4 * p.numel() for p in chosen.values())
        calls, batch = self._calls[module], self._batch_of(module)
        some = max(1, min(batch, _BYTES // max(1, bytes_each)))
        for first in range(0, batch, some):
            part = slice(first, min(first + some, batch))
            totals: dict[str, Tensor] = {}
            for call in calls:
                for local, grads in _gradients(module, chosen, call, batch, part).items():
                    totals[local] = totals[local] + grads if local in totals else grads
            for local, grads in totals.items():
                sums[owned[local]].add_(grads.float().abs().sum(0), alpha=batch if mean else 1)

    def _record(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if torch.is_grad_enabled() and not self.running:
            self._calls.setdefault(module, []).append(Call((args, kwargs), outputs))

    def _count_samples(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = (x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor) and x.dim())
        first = next(tensors, None)
        if first is not None and torch.is_grad_enabled() and not self.running:
            self.batch = len(first)

    def _find_owners(self) -> dict[str, nn.Module]:
        """Per score whose module has no rule: that module, as a whole where it does not call its
        parts (multi-head attention)."""
        owners: dict[str, nn.Module] = {}
        for module in self._model.modules():
            whole = isinstance(module, nn.MultiheadAttention)
            if rule_of(module) is not None and not whole:
                continue
            for param in module.parameters(recurse=whole):
                if id(param) in self._names:
                    owners.setdefault(self._names[id(param)], module)
        return owners

    def _module_for(self, name: str) -> nn.Module:
        """The owner, if it was called with the samples in front; else the model."""
        for module in (self._owners.get(name), self._model):
            calls = self._calls.get(module, []) if module is not None else []
            if module is not None and calls:
                calls = [call for call in calls if any(g is not None for g in call.grads)]
                self._calls[module] = calls
                if calls and all(call.is_of(self._batch_of(module)) for call in calls):
                    return module
        raise RuntimeError(
            f"score 'per_sample': the samples' gradients of {name!r} cannot be told apart: no rule "
            "fits its layer, and the model was not called with the batch as the first dimension of "
            "what goes in and of what comes out. Call the model that Saliency was given, or leave "
            "the parameter out by requires_grad_(False)"
        )

    def _batch_of(self, module: nn.Module) -> int:
        if self.batch is not None:
            return self.batch
        grads = (g for call in self._calls[module] for g in call.grads if g is not None)
        return len(next(grads))

    def _say(self, groups: Mapping[nn.Module, Mapping[str, str]]) -> None:
        if self._said:
            return
        self._said = True
        kinds = sorted({type(module).__name__ for module in groups})
        names = [name for owned in groups.values() for name in owned.values()]
        shown = ", ".join(map(repr, names[:3])) + (" …" if len(names) > 3 else "")
        warnings.warn(
            f"score 'per_sample': no rule for {len(names)} parameters ({shown}); they are scored "
            f"by torch.func, which runs {', '.join(kinds)} once more in parts of the batch",
            PerSampleFallbackWarning,
            stacklevel=2,
        )


def _has_samples(x: object, batch: int) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) == batch


def _gradients(
    module: nn.Module, params: dict[str, Tensor], call: Call, batch: int, part: slice
) -> dict[str, Tensor]:
    """Of the samples in ``part``: [samples, *parameter] each."""
    varying = [_has_samples(x, batch) for x in call.leaves]
    kept = [grad is not None for grad in call.grads]

    def one(xs: list[Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
        samples = iter(xs)
        leaves = [
            next(samples).unsqueeze(0) if own else x
            for x, own in zip(call.leaves, varying, strict=True)
        ]
        args, kwargs = tree_unflatten(leaves, call.spec)

        def run(own: dict[str, Tensor]) -> list[Tensor]:
            outputs = torch.func.functional_call(module, own, args, kwargs)
            flat = [y for y in tree_flatten(outputs)[0] if isinstance(y, Tensor)]
            return [y for y, used in zip(flat, kept, strict=True) if used]

        pull = torch.func.vjp(run, params)[1]
        return dict(pull([grad.unsqueeze(0) for grad in grads])[0])

    xs = [x[part] for x, own in zip(call.leaves, varying, strict=True) if own]
    grads = [grad[part] for grad in call.grads if grad is not None]
    with sdpa_kernel(SDPBackend.MATH):  # vmap runs the others sample by sample
        made: dict[str, Tensor] = torch.func.vmap(one)(xs, grads)
    return {name: own.detach() for name, own in made.items()}
