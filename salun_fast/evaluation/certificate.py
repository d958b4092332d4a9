"""Proof that the weights outside the mask kept every bit."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salun_fast.mask import SaliencyMask

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per weight


@dataclass(frozen=True)
class FreezeCertificate:
    """What became of the frozen weights.

    frozen: how many weights the mask freezes; changed: how many of them differ in any bit;
    digest_before, digest_after: SHA-256 (hex) over name, shape and the frozen weights' bytes of
    every masked parameter, in the mask's order and row-major.
    """

    frozen: int
    changed: int
    digest_before: str
    digest_after: str

    @property
    def holds(self) -> bool:
        return self.changed == 0 and self.digest_before == self.digest_after

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}

    @staticmethod
    def before(model: nn.Module, mask: SaliencyMask) -> FrozenWeights:
        """Copies the frozen weights; ``.after(model)`` compares and certifies."""
        aligned = mask.aligned_to(dict(model.named_parameters()))
        return FrozenWeights(aligned, _frozen_bits(model, aligned))


@dataclass(frozen=True)
class FrozenWeights:
    """The frozen weights as they were: their bits as integers [frozen] per parameter."""

    mask: SaliencyMask
    weights: dict[str, Tensor]

    def after(self, model: nn.Module) -> FreezeCertificate:
        """Compare with a model of the same parameter names, shapes and dtypes."""
        now = _frozen_bits(model, self.mask)
        changed = 0
        for name, old in self.weights.items():
            if old.dtype != now[name].dtype:
                raise ValueError(
                    f"parameter {name!r} had {old.element_size()} bytes per weight before and has "
                    f"{now[name].element_size()} now; certify the model in the dtype it started "
                    "with"
                )
            changed += int((old != now[name]).sum())
        return FreezeCertificate(
            frozen=sum(len(old) for old in self.weights.values()),
            changed=changed,
            digest_before=_digest(self.weights, self.mask),
            digest_after=_digest(now, self.mask),
        )


def _frozen_bits(model: nn.Module, mask: SaliencyMask) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    found = {}
    for name in mask.names:
        weight = parameters[name].detach().cpu().contiguous().flatten()
        numbers = weight.view(_INTEGERS[weight.element_size()]).numpy()
        found[name] = torch.from_numpy(numbers[_frozen(mask, name)])
    return found


def _frozen(mask: SaliencyMask, name: str) -> NDArray[np.bool_]:
    """Row-major; numpy unpacks bits, and selects by them, in a third of the time."""
    octets = mask.words[name].cpu().view(torch.uint8).numpy()
    bits: NDArray[np.uint8] = np.unpackbits(
        octets, count=math.prod(mask.shapes[name]), bitorder="little"
    )
    return np.equal(bits, 0)


def _digest(weights: dict[str, Tensor], mask: SaliencyMask) -> str:
    digest = hashlib.sha256()
    for name, kept in weights.items():
        digest.update(f"{name}{list(mask.shapes[name])}".encode())
        digest.update(kept.numpy().tobytes())
    return digest.hexdigest()
