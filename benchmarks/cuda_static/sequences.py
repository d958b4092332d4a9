"""The same work done by salun-fast, by torch's best and by SalUn's own code, on models of real
size: run without memory to see what each asks of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.cuda_static.traffic import Traffic, empty, traffic_of, without_memory
from salun_fast import bits, models, ops

DENSITY = 0.5
REREADS = 3  # three passes find the threshold before one applies it (csrc/cuda/threshold.cuh)


@dataclass(frozen=True)
class Model:
    """shapes: of its weights; sgd: whether SGD with momentum and decay unlearns it (SalUn's
    classifiers), or Adam (SalUn's diffusion models)."""

    name: str
    shapes: list[torch.Size]
    sgd: bool = False

    @property
    def numel(self) -> int:
        return sum(shape.numel() for shape in self.shapes)


@dataclass(frozen=True)
class Way:
    """One way to do a piece of work."""

    work: str
    name: str
    traffic: Traffic


def all_models() -> list[Model]:
    """SalUn's three settings. Of the UNets only the number of weights and tensors matters here."""
    with torch.device("meta"):
        resnet = models.build("resnet18", 10)
    return [
        Model("ResNet-18", [p.shape for p in resnet.parameters()], sgd=True),
        Model("DDPM UNet", _even(38_600_000, 334)),
        Model("Stable Diffusion UNet", _even(859_520_964, 686)),
    ]


def _even(numel: int, tensors: int) -> list[torch.Size]:
    each, left = divmod(numel, tensors)
    return [torch.Size([each + (i < left)]) for i in range(tensors)]


def ways(model: Model) -> list[Way]:
    """Salun-fast first in each work, then the others."""
    with without_memory():
        return [*_accumulations(model), *_selections(model), *_steps(model)]


def _accumulations(model: Model) -> list[Way]:
    scores, grads = empty(model.shapes), empty(model.shapes)

    def loop() -> None:
        for score, grad in zip(scores, grads, strict=True):
            score += grad

    work = "fold one gradient into the scores"
    return [
        Way(work, "salun-fast", _ours(lambda: ops.accumulate_(scores, grads), launches=3)),
        Way(work, "SalUn's loop", traffic_of(loop)),
    ]


def _selections(model: Model) -> list[Way]:
    scores, k = empty(model.shapes), int(DENSITY * model.numel)

    def double_argsort() -> object:
        flat = -torch.cat([score.abs().flatten() for score in scores])
        ranks = torch.argsort(torch.argsort(flat))
        return torch.where(ranks < k, 1, 0)

    ours = _ours(lambda: ops.select(scores, k), launches=16)
    work = "mask from scores"
    return [
        Way(work, "salun-fast", replace(ours, moved=ours.moved + 4 * REREADS * model.numel)),
        Way(work, "SalUn's double argsort", traffic_of(double_argsort)),
    ]


def _steps(model: Model) -> list[Way]:
    step = _Step(model)
    name = "SGD" if model.sgd else "Adam"
    work = f"masked step ({name})"
    return [
        Way(work, "salun-fast", _ours(step.ours, launches=6)),
        Way(work, f"float mask, fused {name}", traffic_of(step.fused)),
        Way(work, "SalUn's loop", traffic_of(step.reference)),
    ]


def _ours(call: Callable[[], object], launches: int) -> Traffic:
    """launches: the most that tests/cuda_on_cpu/test_launches.py allows for 686 tensors."""
    return replace(traffic_of(call), launches=launches)


class _Step:
    """The settings of SalUn's code: SGD, momentum 0.9, decay 5e-4, or Adam without decay."""

    def __init__(self, model: Model) -> None:
        self._sgd = model.sgd
        self._params, self._grads = empty(model.shapes), empty(model.shapes)
        for param, grad in zip(self._params, self._grads, strict=True):
            param.grad = grad
        self._originals, self._floats = empty(model.shapes), empty(model.shapes)
        self._masks = empty(model.shapes, torch.int64)
        self._host_masks = [torch.empty(shape, dtype=torch.int64) for shape in model.shapes]
        self._words = empty(
            [torch.Size([bits.word_count(shape.numel())]) for shape in model.shapes], torch.int32
        )
        self._counts = empty([torch.Size([])] * len(model.shapes))
        self._states = [empty(model.shapes) for _ in range(1 if model.sgd else 2)]
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self._params, lr=0.01, momentum=0.9, weight_decay=5e-4, foreach=True)
            if model.sgd
            else torch.optim.Adam(self._params, lr=1e-5, foreach=True)
        )
        self._optimizer.step()  # makes its state

    def ours(self) -> None:
        lists = (self._params, self._grads, *self._states)
        if self._sgd:
            ops.masked_sgd_(
                *lists, self._counts, self._words, lr=0.01, momentum=0.9, weight_decay=5e-4
            )
        else:
            ops.masked_adam_(*lists, [], self._counts, self._words, lr=1e-5)

    def fused(self) -> None:
        """The kernels beneath fused=True; torch.optim.SGD itself asks for a driver."""
        torch._foreach_mul_(self._grads, self._floats)
        lists = (self._params, self._grads, *self._states)
        if self._sgd:
            torch._fused_sgd_(
                *lists,
                weight_decay=5e-4,
                momentum=0.9,
                lr=0.01,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        else:
            torch._fused_adam_(
                *lists,
                [],
                self._counts,
                lr=1e-5,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )

    def reference(self) -> None:
        """Every gradient times an int64 mask from the host, torch's own multi-tensor step, and for
        classifiers the frozen weights put back and the momentum masked."""
        for grad, mask in zip(self._grads, self._host_masks, strict=True):
            grad *= mask.to(grad.device)
        self._optimizer.step()
        if self._sgd:
            self._restore()

    def _restore(self) -> None:
        momenta = [self._optimizer.state[param]["momentum_buffer"] for param in self._params]
        rows = zip(self._params, self._masks, self._originals, momenta, strict=True)
        for param, mask, original, momentum in rows:
            param.copy_(torch.where(mask.bool(), param, original))
            momentum *= mask
