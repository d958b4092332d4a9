"""What a piece of torch code would make a GPU do, found by running it on tensors without memory:
kernels launched, bytes of device memory moved, bytes brought from the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# torch's multi-tensor kernels: elements per chunk, chunks per launch, and tensors per launch by the
# number of lists (ATen/native/cuda/MultiTensorApply.cuh).
_CHUNK, _CHUNKS, _TENSORS = 65_536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_RADIX_BITS = 8


@dataclass
class Traffic:
    """launches: kernels; moved: bytes read and written in device memory; carried: bytes from host
    to device."""

    launches: int = 0
    moved: int = 0
    carried: int = 0


class UnknownCost(RuntimeError):
    """How much an operator moves depends on its kernel, not on its arguments alone."""


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made here have shapes and devices, CUDA's included, and nothing else."""
    with FakeTensorMode():
        yield


def traffic_of(call: Callable[[], object]) -> Traffic:
    """Of a call under ``without_memory``."""
    recorder = _Recorder()
    with recorder:
        call()
    return recorder.total


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = Traffic()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        # Fused steps return nothing; not all of them know tensors without memory.
        result = None if _is_fused(func) else func(*args, **(kwargs or {}))
        inputs, outputs = _on_device((args, kwargs)), _on_device(result)
        if (inputs or outputs) and not _is_view(func):
            self._record(func, args, inputs, outputs)
        return result

    def _record(
        self, func: OpOverload, args: tuple[Any, ...], inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        name = func.overloadpacket.__name__
        if name == "_to_copy" and not inputs:
            self.total.carried += _bytes(outputs)
            self.total.moved += _bytes(outputs)
        elif name == "sort":
            self._record_sort(inputs[0])
        elif name in ("kthvalue", "topk"):
            raise UnknownCost(f"{name}: torch's kernel reads its input several times")
        else:
            made = [t for t in outputs if not any(t is given for given in inputs)]
            self.total.launches += _launches(name, args)
            self.total.moved += _bytes(inputs) + _bytes(made) + _bytes(_changed(func, args))

    def _record_sort(self, keys: Tensor) -> None:
        """A radix sort of keys and int64 indices: each pass reads and writes both, and the keys
        are read once more to count their digits."""
        passes = keys.element_size() * 8 // _RADIX_BITS
        self.total.launches += passes + 1
        self.total.moved += keys.numel() * (
            passes * 2 * (keys.element_size() + 8) + keys.element_size()
        )


def _is_view(func: OpOverload) -> bool:
    returns = func._schema.returns
    no_memory = func.namespace == "prim" or func.overloadpacket.__name__ in ("detach", "lift_fresh")
    return no_memory or any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _is_fused(func: OpOverload) -> bool:
    return func.overloadpacket.__name__.startswith("_fused_")


def _on_device(values: object) -> list[Tensor]:
    """The CUDA tensors among them, each once; numbers that are tensors count for nothing."""
    found = [v for v in tree_leaves(values) if isinstance(v, Tensor) and v.device.type == "cuda"]
    return list({id(v): v for v in found if v.dim() > 0}.values())


def _changed(func: OpOverload, args: tuple[Any, ...]) -> list[Tensor]:
    """What a call writes in place: read and written, so counted once more."""
    named = zip(func._schema.arguments, args, strict=False)
    return [
        tensor
        for argument, value in named
        if argument.alias_info is not None and argument.alias_info.is_write
        # Declared as written by steps that can unscale or clear gradients; none does here.
        if argument.name != "grads"
        for tensor in _on_device(value)
    ]


def _launches(name: str, args: tuple[Any, ...]) -> int:
    lists = [a for a in args if isinstance(a, list) and a and isinstance(a[0], Tensor)]
    if not lists or not name.startswith(("_foreach_", "_fused_")):
        return 1
    returns_list = name.startswith("_foreach_") and not name.endswith("_")
    depth = min(len(lists) + returns_list, max(_TENSORS))
    chunks = sum(math.ceil(t.numel() / _CHUNK) for t in lists[0])
    return max(math.ceil(len(lists[0]) / _TENSORS[depth]), math.ceil(chunks / _CHUNKS))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def empty(shapes: list[torch.Size], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
