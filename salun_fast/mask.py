"""SaliencyMask: which weights may move, one bit each, by parameter name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_fast import bits, files, names
from salun_fast.files import FileFormatError, PathLike
from salun_fast.names import Named

_KIND = "salun-fast mask"
_VERSION = 1


class MaskMismatchError(ValueError):
    """A mask and a model, or two masks, that do not belong together."""


class SaliencyMask:
    """Packed bits per named parameter: 1 = the weight may move (SalUn, eq. 3: m_S).

    Made by :meth:`Saliency.mask`, :meth:`from_dict`, :meth:`from_words`, :meth:`load` or
    :meth:`import_reference`. A mask does not change: ``&``, ``|``, ``~``, :meth:`to` and
    :meth:`aligned_to` return new ones. Two masks are equal if names, shapes and bits are, in order.

    Attributes:
        words: per name the packed bits, int32 ``[ceil(n / 32)]``, in row-major order of the
            logical tensor whatever its memory format (element i is bit i % 32 of word i // 32).
        shapes: per name the shape of the parameter.
        score: what the bits were chosen by, in words ("abs_of_sum"), or None if unknown.
        source: the file it was read from, or None; errors name it.
    """

    def __init__(
        self,
        words: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
        *,
        score: str | None = None,
        source: str | None = None,
    ) -> None:
        if words.keys() != shapes.keys():
            odd = next(iter(words.keys() ^ shapes.keys()))
            raise ValueError(f"words and shapes must have the same names; {odd!r} is only in one")
        self.words = dict(words)
        self.shapes = {name: tuple(shapes[name]) for name in self.words}
        self.score = score
        self.source = source
        for name, packed in self.words.items():
            _check_words(name, packed, self.shapes[name])

    # --- made from, and turned into, other forms --------------------------------------------------

    @classmethod
    def from_dict(cls, masks: Mapping[str, Tensor], *, score: str | None = None) -> SaliencyMask:
        """Pack bool tensors, True where the weight may move."""
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(
                    f"mask {name!r}: expected a bool tensor, found {found}; compare first, "
                    "e.g. mask != 0"
                )
        words = {name: bits.pack(mask) for name, mask in masks.items()}
        return cls(words, {name: mask.shape for name, mask in masks.items()}, score=score)

    @classmethod
    def from_words(
        cls,
        words: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
        *,
        score: str | None = None,
    ) -> SaliencyMask:
        """Take packed words as they are, checked: bits past the last element must be 0."""
        mask = cls(words, shapes, score=score)
        for name, packed in mask.words.items():
            tail = math.prod(mask.shapes[name]) % bits.WORD_BITS
            if tail and (int(packed[-1]) & 0xFFFFFFFF) >> tail:
                raise ValueError(
                    f"mask {name!r}: bits past its {math.prod(mask.shapes[name])} elements are "
                    "set; expected zeros there. Clear them or use from_dict"
                )
        return mask

    def to_dict(self) -> dict[str, Tensor]:
        """Bool tensors by name, contiguous: eight times the memory of the mask."""
        return {name: self[name] for name in self.names}

    def to(self, device: torch.device | str) -> SaliencyMask:
        """The same mask with its words on ``device``."""
        return self._with({name: packed.to(device) for name, packed in self.words.items()})

    # --- what it says -----------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self.words)

    @cached_property
    def numel(self) -> int:
        """N: how many weights the mask covers, frozen and selected."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def count(self) -> int:
        """How many weights may move."""
        return sum(bits.count(packed) for packed in self.words.values())

    @property
    def density(self) -> float:
        """count / numel; 0 for a mask of nothing."""
        return self.count / self.numel if self.numel else 0.0

    def layer_densities(self) -> dict[str, float]:
        """Share of weights that may move, per parameter; 0 for one without elements."""
        return {
            name: bits.count(packed) / max(1, math.prod(self.shapes[name]))
            for name, packed in self.words.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, shapes and bits: equal exactly for equal masks."""
        shapes = [[name, list(shape)] for name, shape in self.shapes.items()]
        digest = hashlib.sha256(json.dumps(shapes).encode())
        for packed in self.words.values():
            digest.update(files.bytes_of(packed))
        return digest.hexdigest()

    def __getitem__(self, name: str) -> Tensor:
        """Bool tensor of the parameter's shape, contiguous; prefixed names find their entry."""
        own = name if name in self.words else names.match([name], self.words).get(name)
        if own is None:
            near = ", ".join(map(repr, self.names[:3]))
            raise KeyError(f"the mask has no parameter {name!r}; it begins with {near}")
        return bits.unpack(self.words[own], self.shapes[own])

    def __contains__(self, name: str) -> bool:
        return bool(names.match([name], self.words))

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        """Number of parameters."""
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SaliencyMask):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"SaliencyMask({len(self)} parameters, {self.count:,} of {self.numel:,} weights, "
            f"density {self.density:.4g}, score {self.score!r}, {self.fingerprint[:12]})"
        )

    # --- algebra ----------------------------------------------------------------------------------

    def __and__(self, other: SaliencyMask) -> SaliencyMask:
        return self._combined(other, torch.bitwise_and)

    def __or__(self, other: SaliencyMask) -> SaliencyMask:
        return self._combined(other, torch.bitwise_or)

    def __invert__(self) -> SaliencyMask:
        """Every weight of these parameters that may not move, excluded parameters included."""
        inverted = {}
        for name, packed in self.words.items():
            inverted[name] = ~packed
            tail = math.prod(self.shapes[name]) % bits.WORD_BITS
            if tail:
                inverted[name][-1] &= (1 << tail) - 1
        return SaliencyMask(inverted, self.shapes)

    def iou(self, other: SaliencyMask) -> float:
        """Intersection over union of the selected weights; 1 for two empty masks."""
        union = (self | other).count
        return (self & other).count / union if union else 1.0

    # --- belonging to a model ---------------------------------------------------------------------

    def check(self, parameters: Named, *, strict: bool = True, source: str | None = None) -> None:
        """Raise MaskMismatchError unless the mask fits a model or its named parameters.

        Names match up to the prefixes of known wrappers. Every entry of the mask must have a
        parameter of its shape, and every parameter that requires a gradient an entry; with
        ``strict=False`` what does not fit is passed over. A mask that meets no parameter, or none
        that is trainable, is an error either way: it would do nothing. ``source`` is named in the
        message.
        """
        self._fitting(names.named_tensors(parameters), strict, source or self.source)

    def aligned_to(self, parameters: Named, *, strict: bool = True) -> SaliencyMask:
        """This mask under the names, and in the order, of ``parameters``; checked as by check()."""
        found = names.named_tensors(parameters)
        pairs = self._fitting(found, strict, self.source)
        return SaliencyMask(
            {name: self.words[pairs[name]] for name in found if name in pairs},
            {name: self.shapes[pairs[name]] for name in found if name in pairs},
            score=self.score,
            source=self.source,
        )

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write a safetensors file, atomically: uint32 words by name, and what the mask is.

        Its metadata: format, format_version, sha256, and as JSON names, shapes, score, density and
        fingerprint.
        """
        words = {name: packed.view(torch.uint32) for name, packed in self.words.items()}
        facts = {
            "names": self.names,
            "shapes": [list(shape) for shape in self.shapes.values()],
            "score": self.score,
            "density": self.density,
            "fingerprint": self.fingerprint,
        }
        files.save_tensors(path, words, kind=_KIND, version=_VERSION, facts=facts)

    @classmethod
    def load(cls, path: PathLike) -> SaliencyMask:
        """Read a file of :meth:`save`, on the CPU, its fingerprint verified.

        Raises FileFormatError (a ValueError) for a truncated, altered or foreign file.
        """
        tensors, facts = files.load_tensors(path, kind=_KIND, version=_VERSION)
        with files.understood(path):
            words = {name: tensors.pop(name).view(torch.int32) for name in facts["names"]}
            shapes = dict(zip(facts["names"], facts["shapes"], strict=True))
            mask = cls.from_words(words, shapes, score=facts["score"])
            whole = not tensors and mask.fingerprint == facts["fingerprint"]
        if not whole:
            raise FileFormatError(path, "its fingerprint does not fit its contents")
        mask.source = os.fspath(path)
        return mask

    @classmethod
    def import_reference(cls, path: PathLike) -> SaliencyMask:
        """Read a mask of the paper authors' code: a ``.pt`` dict of name -> tensor of 0 and 1.

        No pickled code is run (``weights_only=True``). Raises FileFormatError for anything else.
        """
        content = _load_pt(path)
        if not isinstance(content, Mapping) or not content:
            raise _foreign(path, f"a {type(content).__name__} of length {_length(content)}")
        for name, mask in content.items():
            if not isinstance(name, str) or not isinstance(mask, Tensor):
                raise _foreign(path, f"{name!r}: {type(mask).__name__}")
            if not _is_binary(mask):
                raise _foreign(path, f"values other than 0 and 1 (or no dense tensor) in {name!r}")
        mask = cls.from_dict({name: value != 0 for name, value in content.items()})
        mask.source = os.fspath(path)
        return mask

    def export_reference(self, path: PathLike) -> None:
        """Write the authors' form, atomically: int64 tensors of 0 and 1, 64 times as large."""
        masks = {name: self[name].cpu().to(torch.int64) for name in self.names}
        files.atomic_write(path, lambda temporary: torch.save(masks, temporary))

    # --- inner ------------------------------------------------------------------------------------

    def _with(self, words: Mapping[str, Tensor]) -> SaliencyMask:
        return SaliencyMask(words, self.shapes, score=self.score, source=self.source)

    def _combined(
        self, other: SaliencyMask, operation: Callable[[Tensor, Tensor], Tensor]
    ) -> SaliencyMask:
        if not isinstance(other, SaliencyMask):
            raise TypeError(f"expected a SaliencyMask, found {type(other).__name__}")
        pairs = names.match(self.words, other.words)
        for name in self.words:
            if name not in pairs or self.shapes[name] != other.shapes[pairs[name]]:
                theirs = other.shapes[pairs[name]] if name in pairs else "missing"
                raise MaskMismatchError(
                    f"these masks belong to different models: {name!r} is {self.shapes[name]} in "
                    f"the first and {theirs} in the second. Combine masks of one model"
                )
        if len(other) != len(self):
            extra = next(name for name in other.names if name not in pairs.values())
            raise MaskMismatchError(
                f"these masks belong to different models: {extra!r} is only in the second. "
                "Combine masks of one model"
            )
        combined = {
            name: operation(packed, other.words[pairs[name]].to(packed.device))
            for name, packed in self.words.items()
        }
        return SaliencyMask(combined, self.shapes)

    def _fitting(
        self, parameters: Mapping[str, Tensor], strict: bool, source: str | None
    ) -> dict[str, str]:
        """The mask's name of every parameter that fits; raises as :meth:`check` says."""
        pairs = names.match(parameters, self.words)
        problems = [] if not strict else self._problems(parameters, pairs)
        origin = f" ({source})" if source else ""
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise MaskMismatchError(
                f"SaliencyMask does not fit the model: {problems[0]} in the mask{origin}{more}. "
                "Rebuild the mask for this model or pass strict=False to skip it."
            )
        fitting = {n: m for n, m in pairs.items() if parameters[n].shape == self.shapes[m]}
        trainable = [name for name, tensor in parameters.items() if tensor.requires_grad]
        if not any(name in fitting for name in trainable or parameters):
            raise MaskMismatchError(
                f"SaliencyMask does not fit the model: none of its {len(self)} entries{origin} "
                f"belongs to a {'trainable ' if trainable else ''}parameter of the model, so it "
                f"would do nothing. The mask has {_some(self.names)}; the model has "
                f"{_some(trainable or list(parameters))}. Rebuild the mask for the parameters that "
                "are trained."
            )
        return fitting

    def _problems(self, parameters: Mapping[str, Tensor], pairs: Mapping[str, str]) -> list[str]:
        """Each ends so that "in the mask" can follow."""
        shapes = [
            f"{name!r} has shape {tuple(parameters[name].shape)} in the model and "
            f"{self.shapes[own]}"
            for name, own in pairs.items()
            if parameters[name].shape != self.shapes[own]
        ]
        missing = [
            f"{name!r} is a trainable parameter of the model and missing"
            for name, tensor in parameters.items()
            if name not in pairs and tensor.requires_grad
        ]
        matched = set(pairs.values())
        extra = [
            f"{name!r} is not in the model and has shape {shape}"
            for name, shape in self.shapes.items()
            if name not in matched
        ]
        return shapes + missing + extra


def _check_words(name: str, packed: Tensor, shape: tuple[int, ...]) -> None:
    expected = bits.word_count(math.prod(shape))
    if packed.dtype != torch.int32 or packed.shape != (expected,):
        raise ValueError(
            f"mask {name!r}: expected int32 [{expected}] words for shape {shape}, found "
            f"{packed.dtype} {list(packed.shape)}; use SaliencyMask.from_dict for bool tensors"
        )


def _is_binary(mask: Tensor) -> bool:
    """A dense tensor of zeros and ones, every element of which is in the file: a stride of 0 lets
    a few bytes claim terabytes."""
    try:
        dense = mask.layout == torch.strided and mask.device.type == "cpu"
        stored = dense and mask.nbytes <= mask.untyped_storage().nbytes()
        return stored and bool(((mask == 0) | (mask == 1)).all())
    except RuntimeError:  # of a dtype that knows no comparison
        return False


def _load_pt(path: PathLike) -> Any:
    with Path(path).open("rb"):  # OSError where it cannot be read at all
        pass
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        # A .pt file is a zip archive (a plain pickle before 2020); torch ignores its checksums.
        altered = _altered_member(path) if zipfile.is_zipfile(path) else None
    except Exception as error:  # foreign bytes raise a dozen types in torch.load and zipfile
        raise _foreign(path, "what torch.load(weights_only=True) refuses") from error
    if altered is not None:
        raise _foreign(path, f"an altered one: the checksum of {altered} does not fit")
    return content


def _altered_member(path: PathLike) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _foreign(path: PathLike, found: str) -> FileFormatError:
    return FileFormatError(
        path,
        "expected a mask of the SalUn reference (dict of name -> tensor of 0 and 1), found "
        f"{found}",
        "Pass the file that its generate_mask step wrote; masks of salun-fast itself are read by "
        "SaliencyMask.load",
    )


def _length(content: object) -> int | str:
    return len(content) if hasattr(content, "__len__") else "unknown"


def _some(all_names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, all_names[:2]))
    return f"{listed}, ..." if len(all_names) > 2 else listed or "nothing"
