"""The work: masked steps of a small convolutional network, with all that happens on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.soak.watch import Sample, sample, watched
from salun_fast import SaliencyMask, SalUnOptimizer, sealed

CLASSES = 10
AfterStep = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Way:
    """An optimizer class with its options. compiled: the step runs under torch.compile."""

    name: str
    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    compiled: bool = False


ADAM = {"lr": 1e-3, "weight_decay": 1e-2, "amsgrad": True}
EAGER = (
    Way("SGD", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-4}),
    Way("Adam", torch.optim.Adam, ADAM),
    Way("AdamW", torch.optim.AdamW, ADAM),
    Way("RMSprop (general path)", torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9}),
)
COMPILED = Way("AdamW, compiled step", torch.optim.AdamW, ADAM, compiled=True)


@dataclass(frozen=True)
class Plan:
    """steps in all; every so many a sample, a new selection, and a round trip of the state."""

    steps: int = 10_000
    sampled: int = 100
    selected: int = 1_000
    returned: int = 500

    @property
    def warm(self) -> int:
        """The step by which everything has happened twice."""
        return 2 * max(self.selected, self.returned)


def run(way: Way, plan: Plan, after_step: AfterStep = lambda step: None) -> list[Sample]:
    """Samples after the first ``plan.warm`` steps. ``after_step`` is called after each step."""
    samples = []
    with tempfile.TemporaryDirectory() as folder, watched():
        work = _Work(way, Path(folder))
        for step in range(1, plan.steps + 1):
            if step % plan.selected == 1:
                work.select()
            work.step()
            if step % plan.returned == 0:
                work.round_trip()
            after_step(step)
            if step > plan.warm and step % plan.sampled == 0:
                samples.append(sample(step))
    return samples


@dataclass
class _Work:
    way: Way
    folder: Path
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        self.model = _network()
        self.optimizer = self._optimizer(None)
        self._take_step = self.optimizer.step
        if self.way.compiled:
            self._take_step = torch.compile(self.optimizer.step, fullgraph=True)

    def step(self) -> None:
        self._loss().backward()
        self._take_step()
        self.optimizer.zero_grad(set_to_none=True)

    def select(self) -> None:
        """Measure anew and freeze other weights; the mask goes through a file."""
        self.model.eval()
        with self.optimizer.measure_saliency():
            for _ in range(2):
                self._loss().backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.select(0.5).save(self.folder / "mask.safetensors")
        self.optimizer.set_mask(SaliencyMask.load(self.folder / "mask.safetensors"))
        self.model.train()

    def round_trip(self) -> None:
        """State and mask go through a file, into a new optimizer where the step is not bound to
        the old one."""
        path = self.folder / "optimizer.pt"
        sealed.save(path, self.optimizer.state_dict())
        if not self.way.compiled:
            self.optimizer = self._optimizer(self.optimizer.mask)
            self._take_step = self.optimizer.step
        self.optimizer.load_state_dict(sealed.load(path, "optimizer", "Run the soak again"))

    def _optimizer(self, mask: SaliencyMask | None) -> SalUnOptimizer:
        named = self.model.named_parameters()
        return SalUnOptimizer(named, self.way.optimizer, mask=mask, **self.way.options)

    def _loss(self) -> Tensor:
        images = torch.randn(8, 3, 12, 12, generator=self.generator)
        labels = torch.randint(CLASSES, (8,), generator=self.generator)
        return F.cross_entropy(self.model(images), labels)


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 2 * 2, CLASSES),
        ).to(memory_format=torch.channels_last)  # fmt: skip
