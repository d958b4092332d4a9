"""How others step under a mask: all leave weight decay and momentum leaking into frozen weights,
but for those that put them back."""

from __future__ import annotations

from collections.abc import Callable
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


class MaskedByTorch:
    """Steps of one of torch's optimizers, all on the same weights and masks; each way of stepping
    has its own state, and each kind of mask is made when it is first used."""

    def __init__(
        self, size: Size, words: list[Tensor], kind: type[torch.optim.Optimizer], **options: Any
    ) -> None:
        self.name, self._kind, self._options = kind.__name__, kind, options
        self._size, self._words = size, words
        self._params = [torch.nn.Parameter(p) for p in size.rand(1)]
        self._grads = size.rand(2)
        for param, grad in zip(self._params, self._grads, strict=True):
            param.grad = grad
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
            torch._foreach_mul_(self._grads, self._masks(torch.float32))
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
            self._optimizers[way] = self._kind(self._params, **WAYS[way], **self._options)
        return self._optimizers[way]

    def _masks(self, dtype: torch.dtype) -> list[Tensor]:
        shape = (self._size.each,)
        return self._kept(
            str(dtype), lambda: [bits.unpack(words, shape).to(dtype) for words in self._words]
        )

    def _kept(self, kind: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        if kind not in self._made:
            self._made[kind] = make()
        return self._made[kind]


def step_peers(torchs: MaskedByTorch, device: torch.device, target: float) -> list[Peer]:
    name = torchs.name
    return [
        *(_on_cpu if device.type == "cpu" else _on_gpu)(torchs, target),
        Peer(
            f"{name}(fused) + restore by torch.where",
            torchs.restored("fused"),
            "exact weights; state leaks",
        ),
        Peer(f"{name}(fused), no mask", torchs.plain("fused"), "does not mask at all"),
    ]


def _on_cpu(torchs: MaskedByTorch, target: float) -> list[Peer]:
    name = torchs.name
    fused = {
        kind: torchs.multiplied(dtype, "fused")
        for kind, dtype in (
            ("bool", torch.bool),
            ("float", torch.float32),
            ("int64", torch.int64),
        )
    }
    return [
        Peer(f"grad *= mask (bool) + {name}(fused)", fused["bool"], LEAKS, target),
        Peer(f"grad *= mask (float) + {name}(fused)", fused["float"], LEAKS, target),
        Peer(f"grad *= mask (int64) + {name}(fused)", fused["int64"], f"{LEAKS}; SalUn's code"),
    ]


def _on_gpu(torchs: MaskedByTorch, target: float) -> list[Peer]:
    name = torchs.name
    host = torchs.multiplied_from_host
    return [
        Peer(
            f"grad *= mask (bool) + {name}(fused)",
            torchs.multiplied(torch.bool, "fused"),
            f"{LEAKS}; a launch per mask",
            target,
        ),
        Peer(
            f"_foreach_mul_(grads, float masks) + {name}(fused)",
            torchs.multiplied_together("fused"),
            LEAKS,
            target,
        ),
        Peer(
            f"_foreach_mul_(grads, float masks) + {name}(foreach)",
            torchs.multiplied_together("foreach"),
            LEAKS,
            target,
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
