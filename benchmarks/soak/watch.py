"""What a process holds at one moment after the other, and whether that grows."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from benchmarks.sd_scale.meter import give_back, resident

# Growth over a whole run that is still flat: pages that an allocator keeps, entries of caches.
ALLOWED_BYTES = 4 << 20
ALLOWED_OBJECTS = 150


@dataclass(frozen=True)
class Sample:
    """resident: bytes of the process. tensors, objects: those of Python's that :func:`watched`
    has seen come and not go."""

    step: int
    resident: float
    tensors: int
    objects: int


@dataclass(frozen=True)
class Growth:
    """From the first quarter of the samples to the last, by their medians."""

    resident: float
    tensors: float
    objects: float

    @classmethod
    def over(cls, samples: Sequence[Sample]) -> Growth:
        quarter = max(len(samples) // 4, 1)

        def grown(of: Callable[[Sample], float]) -> float:
            first, last = (map(of, part) for part in (samples[:quarter], samples[-quarter:]))
            return statistics.median(last) - statistics.median(first)

        return cls(
            grown(lambda sample: sample.resident),
            grown(lambda sample: sample.tensors),
            grown(lambda sample: sample.objects),
        )

    @property
    def flat(self) -> bool:
        """Not one tensor more, and nothing else to speak of."""
        return (
            self.tensors <= 0 and self.resident <= ALLOWED_BYTES and self.objects <= ALLOWED_OBJECTS
        )


@contextmanager
def watched() -> Iterator[None]:
    """What was there before is left out of samples, which are slow otherwise."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def sample(step: int) -> Sample:
    """After a collection, so that only what is held counts."""
    give_back()
    known = gc.get_objects()
    tensors = sum(issubclass(type(thing), Tensor) for thing in known)
    return Sample(step, resident(), tensors, len(known))
