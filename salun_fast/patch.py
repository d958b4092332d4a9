"""UnlearningPatch: what unlearning changed in a model, to apply and to remove bit for bit.

A weight's old and new bit patterns are combined by exclusive or: the result turns the old pattern
into the new one and the new one into the old, whatever the bits mean (NaN payloads, -0.0).
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast import bits, files, names
from salun_fast.files import PathLike
from salun_fast.mask import SaliencyMask
from salun_fast.names import Named

_KIND = "salun-fast unlearning patch"
_VERSION = 1
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Weights looked at in one go: bounds the extra memory, and is a whole number of words of bits.
_CHUNK = 1 << 22


class PatchMismatchError(ValueError):
    """A patch and a model, or the two models of a patch, that do not belong together."""


@dataclass(frozen=True, eq=False)
class TensorChange:
    """What changed in one tensor of n weights.

    Attributes:
        names: its name, then its other names where it is tied.
        shape, dtype: of the tensor.
        words: int32 ``[ceil(n / 32)]``, a bit per weight in row-major order: 1 = it changed.
        xor: old ^ new of the changed weights, in that order, as integers of the weight's size.
        before, after: SHA-256 (hex) over dtype, shape and row-major bytes of the whole tensor.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    words: Tensor
    xor: Tensor
    before: str
    after: str

    @classmethod
    def between(cls, own_names: Sequence[str], old: Tensor, new: Tensor) -> TensorChange | None:
        """None where no bit changed. Both tensors have the same shape and dtype."""
        old_bits, new_bits = _integers(old), _integers(new)
        if torch.equal(old_bits, new_bits):
            return None
        words, xor = [], []
        for part in _parts(old.numel()):
            difference = old_bits[part] ^ new_bits[part]
            changed = difference != 0
            words.append(bits.pack(changed))
            xor.append(difference[changed])
        return cls(
            names=tuple(own_names),
            shape=tuple(old.shape),
            dtype=old.dtype,
            words=torch.cat(words),
            xor=torch.cat(xor),
            before=_digest(old),
            after=_digest(new),
        )

    @property
    def count(self) -> int:
        """How many weights changed."""
        return self.xor.numel()

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.xor.nbytes

    def toggle_(self, tensor: Tensor) -> None:
        """Turn old weights into new ones, or back, in place, by one torch operation.

        The extra memory is one tensor on the CPU and, if it lives elsewhere, one there.
        """
        difference = self._dense_xor().to(tensor.device)
        with torch.no_grad():
            tensor.detach().view(difference.dtype).bitwise_xor_(difference)

    def _dense_xor(self) -> Tensor:
        dense = torch.zeros(self.numel, dtype=self.xor.dtype)
        taken = 0
        for part in _parts(self.numel):
            length = part.stop - part.start
            first = part.start // bits.WORD_BITS
            words = self.words[first : first + bits.word_count(length)]
            changed = bits.unpack(words, (length,))
            count = bits.count(words)
            dense[part][changed] = self.xor[taken : taken + count]
            taken += count
        return dense.view(self.shape)


class UnlearningPatch:
    """The weights that unlearning changed, to be applied to the original model and removed again.

    Made by :meth:`between` or :meth:`load`; it does not change. ``apply_`` turns the original
    weights into the unlearned ones, ``remove_`` turns them back, both to the bit, and both refuse
    a model with any other weights before a byte of it is written.

    Attributes:
        changes: what changed, per tensor with a change, by its name.
        numel: weights of the whole model that was compared, changed and unchanged.
        model_nbytes: bytes of those weights.
        source: the file it was read from, or None; errors name it.
    """

    def __init__(
        self,
        changes: Sequence[TensorChange],
        *,
        numel: int,
        model_nbytes: int,
        source: str | None = None,
    ) -> None:
        self.changes = {change.names[0]: change for change in changes}
        self.numel = numel
        self.model_nbytes = model_nbytes
        self.source = source

    @classmethod
    def between(cls, original: Named, changed: Named) -> UnlearningPatch:
        """Compare two models, or named tensors, bit by bit.

        Of a module its parameters and persistent buffers count (batch-norm statistics move too).
        Names match up to the prefixes of known wrappers; the patch has those of ``original``.
        Tied tensors are stored once. Devices and memory formats may differ. Beyond the patch
        itself the memory is about that of the largest tensor on the CPU.

        Raises PatchMismatchError (a ValueError) unless names, shapes and dtypes are the same.
        """
        old, new = _tensors(original), _tensors(changed)
        pairs = _paired(old, new)
        tied: dict[Hashable, list[str]] = {}
        for name in old:
            both = (_memory(name, old[name]), _memory(pairs[name], new[pairs[name]]))
            tied.setdefault(both if old[name].numel() else name, []).append(name)
        changes = [
            change
            for group in tied.values()
            if (change := TensorChange.between(group, old[group[0]], new[pairs[group[0]]]))
        ]
        distinct = [old[group[0]] for group in tied.values()]
        return cls(
            changes,
            numel=sum(tensor.numel() for tensor in distinct),
            model_nbytes=sum(tensor.nbytes for tensor in distinct),
        )

    # --- what it says -----------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Tensors with a change, tied ones by their first name."""
        return list(self.changes)

    @property
    def count(self) -> int:
        """How many weights changed."""
        return sum(change.count for change in self.changes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the bits and of the changed weights; a file adds its header."""
        return sum(change.nbytes for change in self.changes.values())

    def mask(self) -> SaliencyMask:
        """The changed weights as a mask over the tensors with a change."""
        return SaliencyMask(
            {name: change.words for name, change in self.changes.items()},
            {name: change.shape for name, change in self.changes.items()},
            score="changed by unlearning",
        )

    def __len__(self) -> int:
        """Number of tensors with a change."""
        return len(self.changes)

    def __repr__(self) -> str:
        return (
            f"UnlearningPatch({len(self)} tensors, {self.count:,} of {self.numel:,} weights "
            f"changed, {self.nbytes:,} of {self.model_nbytes:,} bytes)"
        )

    # --- to and from the unlearned model ----------------------------------------------------------

    def apply_(self, model: Named) -> None:
        """Turn the original weights into the unlearned ones, in place.

        ``model`` is a module or named tensors, on any device and in any memory format; tied
        tensors are patched once. Raises PatchMismatchError (a ValueError) where a tensor of the
        patch is missing, has another shape or dtype, is patched already or holds weights other
        than the original's. After any error the model is as it was.
        """
        self._toggle_(model, applying=True)

    def remove_(self, model: Named) -> None:
        """Turn the unlearned weights back into the original ones; the inverse of :meth:`apply_`."""
        self._toggle_(model, applying=False)

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write a safetensors file, atomically.

        Per tensor NAME: ``changed/NAME``, uint32 words of bits, and ``xor/NAME``. Its metadata:
        format, format_version, sha256, and as JSON numel, model_nbytes and the list tensors (of
        names, shape, dtype, before, after).
        """
        stored = {}
        for name, change in self.changes.items():
            stored[f"changed/{name}"] = change.words.view(torch.uint32)
            stored[f"xor/{name}"] = change.xor
        facts = {
            "numel": self.numel,
            "model_nbytes": self.model_nbytes,
            "tensors": [_described(change) for change in self.changes.values()],
        }
        files.save_tensors(path, stored, kind=_KIND, version=_VERSION, facts=facts)

    @classmethod
    def load(cls, path: PathLike) -> UnlearningPatch:
        """Read a file of :meth:`save`, on the CPU.

        Raises FileFormatError (a ValueError) for a truncated, altered or foreign file.
        """
        tensors, facts = files.load_tensors(path, kind=_KIND, version=_VERSION)
        with files.understood(path):
            changes = [_restored(described, tensors) for described in facts["tensors"]]
            numel, model_nbytes = int(facts["numel"]), int(facts["model_nbytes"])
            if tensors:
                raise ValueError(f"unknown tensor {next(iter(tensors))!r}")
        return cls(changes, numel=numel, model_nbytes=model_nbytes, source=os.fspath(path))

    # --- inner ------------------------------------------------------------------------------------

    def _toggle_(self, model: Named, *, applying: bool) -> None:
        targets = self._targets(_tensors(model))
        for name, change, tensor in targets:
            problem = _state_problem(change, tensor, applying)
            if problem:
                raise self._mismatch(f"{name!r} {problem}")
        done: list[tuple[TensorChange, Tensor]] = []
        try:
            for _, change, tensor in targets:
                done.append((change, tensor))
                change.toggle_(tensor)
        except BaseException:  # out of memory, Ctrl-C: each change is its own inverse
            for change, tensor in done:
                if _state_problem(change, tensor, applying):  # it is no longer as it was
                    change.toggle_(tensor)
            raise

    def _targets(self, available: Mapping[str, Tensor]) -> list[tuple[str, TensorChange, Tensor]]:
        """Each tensor to be written, once, under its name in the model."""
        wanted = [name for change in self.changes.values() for name in change.names]
        pairs = names.match(wanted, available)
        found: dict[Hashable, tuple[str, TensorChange, Tensor]] = {}
        for change in self.changes.values():
            present = [pairs[name] for name in change.names if name in pairs]
            if not present:
                raise self._mismatch(_missing(change.names[0], available))
            for name in present:
                tensor = available[name]
                if problem := _form_problem(change, tensor):
                    raise self._mismatch(f"{name!r} {problem}")
                tied = (_memory(name, tensor), change.before, change.after)
                found.setdefault(tied, (name, change, tensor))
        targets = list(found.values())
        if problem := _overlap(targets):
            raise self._mismatch(problem)
        return targets

    def _mismatch(self, problem: str) -> PatchMismatchError:
        origin = f" ({self.source})" if self.source else ""
        return PatchMismatchError(
            f"UnlearningPatch{origin} does not fit the model: {problem}. Nothing was changed."
        )


def _tensors(source: Named) -> dict[str, Tensor]:
    """What a model holds, under every name, tied tensors under all of theirs."""
    if isinstance(source, nn.Module):
        persistent = source.state_dict().keys()
        buffers = source.named_buffers(remove_duplicate=False)
        return dict(source.named_parameters(remove_duplicate=False)) | {
            name: buffer for name, buffer in buffers if name in persistent
        }
    pairs = list(source.items() if isinstance(source, Mapping) else source)
    names.named_tensors(pairs)  # refuses what is not a name and a tensor
    return dict(pairs)


def _paired(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, str]:
    """The changed model's name of every tensor of the original, both checked."""
    pairs = names.match(old, new)
    paired = set(pairs.values())
    extra = [name for name in new if name not in paired]
    for name in [name for name in old if name not in pairs] + extra:
        only = "original" if name in old else "changed"
        raise PatchMismatchError(
            f"UnlearningPatch: {name!r} is only in the {only} model. Pass the same model before "
            "and after unlearning"
        )
    for name, other in pairs.items():
        for fact in ("shape", "dtype"):
            before, after = getattr(old[name], fact), getattr(new[other], fact)
            if before != after:
                raise PatchMismatchError(
                    f"UnlearningPatch: {name!r} has {fact} {_plain(before)} in the original model "
                    f"and {_plain(after)} in the changed one. Pass the same model before and "
                    "after unlearning, in one dtype"
                )
    return pairs


def _plain(fact: object) -> object:
    return tuple(fact) if isinstance(fact, torch.Size) else fact


def _memory(name: str, tensor: Tensor) -> Hashable:
    """What tied tensors have in common; refuses tensors whose bytes cannot be read or written."""
    if tensor.layout != torch.strided or tensor.is_meta:
        what = "no data (device meta)" if tensor.is_meta else f"layout {tensor.layout}"
        raise ValueError(f"{name!r} has {what}; UnlearningPatch takes dense tensors with data")
    if tensor.element_size() not in _INTEGERS:
        raise ValueError(
            f"{name!r} is {tensor.dtype}; UnlearningPatch takes dtypes of 1, 2, 4 or 8 bytes"
        )
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    if any(size > 1 and stride == 0 for size, stride in steps):
        raise ValueError(
            f"{name!r} holds several weights at one address (an expanded tensor); clone it first"
        )
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _form_problem(change: TensorChange, tensor: Tensor) -> str | None:
    if tuple(tensor.shape) != change.shape:
        return (
            f"has shape {tuple(tensor.shape)} in the model and {change.shape} in the patch: this "
            "patch was made for another model"
        )
    if tensor.dtype != change.dtype:
        return (
            f"is {tensor.dtype} in the model and {change.dtype} in the patch; load the model in "
            f"{change.dtype}"
        )
    return None


def _state_problem(change: TensorChange, tensor: Tensor, applying: bool) -> str | None:
    """What keeps a tensor of the right form from being patched, or unpatched."""
    found = _digest(tensor)
    wanted, reached = (change.before, change.after) if applying else (change.after, change.before)
    if found == wanted:
        return None
    if found == reached and applying:
        return "holds the unlearned weights: this patch is already applied"
    if found == reached:
        return "holds the original weights: this patch is not applied, so it cannot be removed"
    state = "original" if applying else "unlearned"
    return (
        f"holds other weights than the {state} ones: this patch was made for another model, or "
        "the weights were changed since"
    )


def _overlap(targets: Sequence[tuple[str, TensorChange, Tensor]]) -> str | None:
    """Two tensors in one piece of memory would undo each other's change."""
    spans = sorted((str(t.device), t.data_ptr(), _end(t), name) for name, _, t in targets)
    for (device, _, end, first), (other, start, _, second) in itertools.pairwise(spans):
        if device == other and start < end:
            return (
                f"{first!r} and {second!r} share memory in the model, but not as one and the same "
                "tensor with one change. Clone one of them first"
            )
    return None


def _end(tensor: Tensor) -> int:
    """The address behind the last element."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _missing(name: str, available: Mapping[str, Tensor]) -> str:
    near = difflib.get_close_matches(name, available, n=3, cutoff=0.4) or list(available)[:3]
    listed = ", ".join(map(repr, near)) or "nothing"
    return (
        f"it has no {name!r} (near it are {listed}). Pass the model that the patch was made for, "
        "of a pipeline its unet"
    )


def _parts(numel: int) -> Iterator[slice]:
    for start in range(0, numel, _CHUNK):
        yield slice(start, min(start + _CHUNK, numel))


def _integers(tensor: Tensor) -> Tensor:
    """The bit patterns [n] in row-major order on the CPU, without a copy where they lie so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(_INTEGERS[tensor.element_size()])


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([_dtype_name(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(files.bytes_of(tensor))
    return digest.hexdigest()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(change: TensorChange) -> dict[str, Any]:
    return {
        "names": list(change.names),
        "shape": list(change.shape),
        "dtype": _dtype_name(change.dtype),
        "before": change.before,
        "after": change.after,
    }


def _restored(described: Mapping[str, Any], tensors: dict[str, Tensor]) -> TensorChange:
    """Take a TensorChange out of a file; raises ValueError or KeyError for parts that disagree."""
    own_names = tuple(described["names"])
    dtype = getattr(torch, described["dtype"])
    change = TensorChange(
        names=own_names,
        shape=tuple(described["shape"]),
        dtype=dtype,
        words=tensors.pop(f"changed/{own_names[0]}").view(torch.int32),
        xor=tensors.pop(f"xor/{own_names[0]}"),
        before=described["before"],
        after=described["after"],
    )
    mask = SaliencyMask.from_words({own_names[0]: change.words}, {own_names[0]: change.shape})
    if change.xor.shape != (mask.count,) or change.xor.dtype != _INTEGERS[dtype.itemsize]:
        raise ValueError(
            f"{own_names[0]!r} has {mask.count} changed weights of {dtype}, found "
            f"{change.xor.dtype} {list(change.xor.shape)}"
        )
    return change
