"""How others step under a mask: all leave weight decay and momentum leaking into frozen weights,
but for those that put them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Call, Peer, Size
from salun_fast import bits

LEAKS = "frozen weights leak by decay and momentum"
WAYS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False, "fused": False},
}
FOREACH_NEEDS = 8  # bytes per weight for a while: what it computes for all tensors at once
State = Mapping[str, list[Tensor]]  # by torch's names: "exp_avg", ...


class MaskedByTorch:
    """Steps of one of torch's optimizers on the weights, gradients and state given, which all ways
    share, as ours does: so a model of 860 M weights fits. Each kind of mask is made when it is
    first used."""

    def __init__(
        self,
        size: Size,
        params: list[Tensor],
        grads: list[Tensor],
        words: list[Tensor],
        kind: type[torch.optim.Optimizer],
        state: State | None = None,
        **options: Any,
    ) -> None:
        self.name, self._kind, self._options = kind.__name__, kind, options
        self._size, self._words, self._grads = size, words, grads
        self._params = [torch.nn.Parameter(p) for p in params]
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        # torch keeps state in the weights' dtype, ours is fp32: shared where that is the same.
        self._state = state if state and size.dtype == torch.float32 else {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._made: dict[str, list[Tensor]] = {}

    def plain(self, way: str) -> Call:
        return lambda: self._optimizer(way).step()

    def multiplied(self, dtype: torch.dtype, way: str) -> Call:
        """One multiplication per tensor."""

        def call() -> None:
            for grad, mask in zip(self._grads, self._masks(dtype), strict=True):
                grad *= mask
            self._optimizer(way).step()

        return call

    def multiplied_together(self, way: str) -> Call:
        """One multiplication for the whole list."""

        def call() -> None:
            torch._foreach_mul_(self._grads, self._masks(self._size.dtype))
            self._optimizer(way).step()

        return call

    def multiplied_from_host(self, way: str) -> Call:
        """As SalUn's code: int64 masks stay on the host and are copied at every step."""

        def call() -> None:
            masks = self._kept("host", lambda: [m.cpu() for m in self._masks(torch.int64)])
            for grad, mask in zip(self._grads, masks, strict=True):
                grad *= mask.to(grad.device)
            self._optimizer(way).step()

        return call

    def restored(self, way: str) -> Call:
        """No multiplication: the frozen weights are put back afterwards."""

        def call() -> None:
            originals = self._kept("originals", lambda: [p.detach().clone() for p in self._params])
            self._optimizer(way).step()
            rows = zip(self._params, self._masks(torch.bool), originals, strict=True)
            with torch.no_grad():
                for param, mask, original in rows:
                    param.copy_(torch.where(mask, param, original))

        return call

    def _optimizer(self, way: str) -> torch.optim.Optimizer:
        if way not in self._optimizers:
            made = self._kind(self._params, **WAYS[way], **self._options)
            for index, param in enumerate(self._params if self._state else []):
                made.state[param] = self._state_of(index, way)
            self._optimizers[way] = made
        return self._optimizers[way]

    def _state_of(self, index: int, way: str) -> dict[str, Tensor]:
        """Only the fused steps count on the device."""
        found = {name: tensors[index] for name, tensors in self._state.items()}
        if self.name != "SGD":
            found["step"] = torch.tensor(0.0).to(self._size.device if way == "fused" else "cpu")
        return found

    def _masks(self, dtype: torch.dtype) -> list[Tensor]:
        def make() -> list[Tensor]:
            rows = zip(self._words, self._size.numels, strict=True)
            return [bits.unpack(words, (count,)).to(dtype) for words, count in rows]

        return self._kept(str(dtype), make)

    def _kept(self, kind: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        if kind not in self._made:
            self._made[kind] = make()
        return self._made[kind]


def step_peers(torchs: MaskedByTorch, size: Size, target: float) -> list[Peer]:
    name, weight = torchs.name, size.dtype.itemsize
    return [
        *(_on_cpu if size.device.type == "cpu" else _on_gpu)(torchs, size.dtype, target),
        Peer(
            f"{name}(fused) + restore by torch.where",
            torchs.restored("fused"),
            "exact weights; state leaks",
            keeps=1 + weight,
            needs=2 + weight,
        ),
        Peer(f"{name}(fused), no mask", torchs.plain("fused"), "does not mask at all"),
    ]


def _on_cpu(torchs: MaskedByTorch, float_: torch.dtype, target: float) -> list[Peer]:
    """The for-loop is what torch takes on a CPU where nothing is asked for, and so SalUn's code."""

    def peer(kind: str, dtype: torch.dtype, way: str, *rest: Any) -> Peer:
        each = dtype.itemsize
        return Peer(
            f"grad *= mask ({kind}) + {torchs.name}({way})",
            torchs.multiplied(dtype, way),
            *rest,
            keeps=each,
            needs=each + 1 + (FOREACH_NEEDS if way == "foreach" else 0),
        )

    return [
        peer("bool", torch.bool, "fused", LEAKS, target),
        peer("float", float_, "fused", LEAKS, target),
        peer("float", float_, "foreach", LEAKS),
        peer("int64", torch.int64, "fused", LEAKS),
        peer("int64", torch.int64, "for-loop", f"{LEAKS}; SalUn's code"),
    ]


def _on_gpu(torchs: MaskedByTorch, float_: torch.dtype, target: float) -> list[Peer]:
    name, weight = torchs.name, float_.itemsize
    host = torchs.multiplied_from_host
    return [
        Peer(
            f"grad *= mask (bool) + {name}(fused)",
            torchs.multiplied(torch.bool, "fused"),
            f"{LEAKS}; a launch per mask",
            target,
            keeps=1,
            needs=2,
        ),
        Peer(
            f"_foreach_mul_(grads, float masks) + {name}(fused)",
            torchs.multiplied_together("fused"),
            LEAKS,
            target,
            keeps=weight,
            needs=weight + 1,
        ),
        Peer(
            f"_foreach_mul_(grads, float masks) + {name}(foreach)",
            torchs.multiplied_together("foreach"),
            LEAKS,
            target,
            keeps=weight,
            needs=weight + 1,
        ),
        Peer(
            f"int64 masks from the host + {name}(foreach)",
            host("foreach"),
            f"{LEAKS}; SalUn's code under today's torch",
        ),
        Peer(
            f"int64 masks from the host + {name}(for-loop)",
            host("for-loop"),
            f"{LEAKS}; SalUn's code under the torch of its time",
        ),
    ]
