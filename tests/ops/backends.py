"""The op tests run unchanged on every backend: for the length of a test, others take the place of
the CPU kernels.

The tests hand over CPU tensors. Emulated kernels (``tests/cuda_on_cpu``) take them as they are; a
real GPU gets copies, and what it wrote is copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from salun_fast import ops
from tests.cuda_on_cpu import build

BACKENDS = ("cpu", "cuda_on_cpu", "cuda")


def unavailable(backend: str) -> str:
    """Why a backend cannot run here; empty if it can."""
    if backend == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return build.unavailable() if backend == "cuda_on_cpu" else ""


def present() -> list[str]:
    """The backends to test where none is named: a GPU only if there is one."""
    return [name for name in BACKENDS if name != "cuda" or torch.cuda.is_available()]


def emulated_library(given: str | None) -> Path:
    """Load the emulated kernels, compiled if none are given."""
    library = Path(given) if given else build.library("plain")
    torch.ops.load_library(library)
    return library


@contextmanager
def in_place_of_cpu(backend: str) -> Iterator[None]:
    """Within this context ops on CPU tensors run on ``backend``."""
    if backend == "cpu":
        yield
        return
    stand_in = {"cuda_on_cpu": _emulated, "cuda": _on_the_gpu}[backend]
    library = torch.library.Library("salun_fast", "IMPL")
    try:
        for name in ops.TABLE:
            op = getattr(torch.ops.salun_fast, name).default
            library.impl(name, stand_in(op), "CPU", allow_override=True)
        yield
    finally:
        library._destroy()  # uncovers the compiled CPU kernels


# --- emulated -------------------------------------------------------------------------------------


def _emulated(op: Any) -> Callable[..., Any]:
    keys = DispatchKeySet(getattr(DispatchKey, build.DISPATCH_KEY))
    qualified = op.name().partition(".")[0]
    assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, build.DISPATCH_KEY)
    return lambda *arguments: op.redispatch(keys, *arguments)


# --- a real GPU -----------------------------------------------------------------------------------


def _on_the_gpu(op: Any) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        copies = _Copies()
        result = op(*copies.there(arguments))
        copies.write_back()
        return _on_the_cpu(result)

    return run


class _Copies:
    """Whole storages on the GPU: aliases, offsets and strides are those of the originals."""

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def there(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.there(item) for item in value)
        # A Python number that became a tensor is on the CPU in real use too.
        if isinstance(value, Tensor) and value.dtype != torch.float64:
            return self._copy(value)
        return value

    def _copy(self, tensor: Tensor) -> Tensor:
        host = tensor.untyped_storage()
        if host._cdata not in self._pairs:
            device = torch.UntypedStorage(host.nbytes(), device="cuda")
            self._pairs[host._cdata] = (host, device.copy_(host))
        copy = torch.empty(0, dtype=tensor.dtype, device="cuda")
        storage = self._pairs[host._cdata][1]
        return copy.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def write_back(self) -> None:
        for host, device in self._pairs.values():
            host.copy_(device)


def _on_the_cpu(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_on_the_cpu(item) for item in value)
    return value.cpu() if isinstance(value, Tensor) else value
