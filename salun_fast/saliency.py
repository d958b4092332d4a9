"""Saliency: how much each weight matters to the forget data, and masks of those that matter most.

SalUn (arXiv 2310.12508), eq. 3 and 4: s = |Σ_b ∇ℓ_b(θ_o)|, the mask keeps the int(N·r) largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salun_fast import files, names
from salun_fast._eval_mode import eval_mode
from salun_fast._measurement import Measurement
from salun_fast._score_ranks import add_up_ranks, decline
from salun_fast._score_sums import ScoreSums, first_nonfinite, peak
from salun_fast._selection import no_words, random_keys, select
from salun_fast._shards import Layout, common_mesh, gathered
from salun_fast.distributed import ShardedMask
from salun_fast.files import FileFormatError, PathLike
from salun_fast.mask import SaliencyMask
from salun_fast.names import Named, Patterns

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What is added per batch; the score is the magnitude of the sum.
SCORES = {
    "abs_of_sum": "sum",
    "sum_of_abs": "abs",
    "sum_of_squares": "square",
    "per_sample": "per_sample",
}
_REDUCTIONS = ("mean", "sum")
_SCOPES = ("global", "tensor")
_WHICH = ("largest", "smallest", "random")
_NONFINITE = ("error", "reference")
_WEIGHTINGS = ("batch", "sample")
_KIND = "salun-fast saliency"
_VERSION = 1


class Saliency:
    """Scores of all trainable parameters, gathered from gradients; masks of any density from them.

    Parameters with ``requires_grad=False`` are left out: they have no score and do not count into
    N. A parameter whose gradient is None (an unused layer) has score 0 and counts. A parameter
    shared under several names counts once, at the first of them.

    Args:
        parameters: a module, its ``named_parameters()``, or a dict of them.
        score: "abs_of_sum" |Σ g| (SalUn), "sum_of_abs" Σ |g|, or "sum_of_squares" Σ g² (diagonal
            Fisher), over batches; or "per_sample" Σ_i |g_i|, over samples (:mod:`.per_sample`),
            which needs the module, and inputs whose first dimension is the batch. Sums are kept in
            fp32 whatever the dtype of the gradients.
        module: the module they belong to, where ``parameters`` is not that itself.

    Sharded parameters (FSDP2) have sharded scores: each process keeps those of its blocks.

    Example:
        >>> saliency = Saliency(model)
        >>> with saliency.measure():
        ...     for x, y in forget_loader:
        ...         loss_fn(model(x), y).backward()
        >>> mask = saliency.mask(0.5)
    """

    def __init__(
        self,
        parameters: Named,
        score: str = "abs_of_sum",
        *,
        module: nn.Module | None = None,
    ) -> None:
        _check_choice("score", score, tuple(SCORES))
        found = {n: p for n, p in names.named_tensors(parameters).items() if p.requires_grad}
        if not found:
            raise ValueError(
                "Saliency found no parameter that requires a gradient; pass the model before "
                "freezing it, or requires_grad_(True) those that may change"
            )
        for name, parameter in found.items():
            _check_real(name, parameter)
        self.score = score
        self._module = parameters if isinstance(parameters, nn.Module) else module
        if score == "per_sample":
            _check_module(self._module, found)
        self._sums: ScoreSums | None = ScoreSums(found, SCORES[score])
        self._given: dict[str, Tensor] = {}
        self._measuring = False

    @classmethod
    def from_dict(cls, scores: Mapping[str, Tensor], *, score: str = "custom") -> Saliency:
        """Scores from anywhere, ranked by magnitude in fp32; ``score`` says what they are.

        Copies them. They can be ranked and saved; nothing can be added.
        """
        if not scores:
            raise ValueError("Saliency.from_dict: expected at least one named score tensor")
        for name, values in scores.items():
            _check_real(name, values)
        saliency = cls.__new__(cls)
        saliency.score = score
        saliency._module = None
        saliency._sums = None
        saliency._given = {
            name: values.detach().to(torch.float32, copy=True) for name, values in scores.items()
        }
        saliency._measuring = False
        return saliency

    @classmethod
    def from_data(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        score: str = "abs_of_sum",
        weighting: str = "batch",
        clip_norm: float | None = None,
        progress: bool = False,
    ) -> Saliency:
        """One pass over ``loader`` in eval mode; the model is left exactly as it was.

        Args:
            loader: gives pairs (inputs, targets); tensors move to the model's device.
            loss_fn: ``loss_fn(model(inputs), targets)`` is the mean loss of the batch, a scalar.
            weighting: "batch" counts every batch alike, a short last one too, as the reference
                does; "sample" weighs by batch size relative to the first batch, which makes the
                sum the gradient of the whole set up to one factor. With score="per_sample" every
                sample counts alike, and this is not looked at.
            clip_norm: scale each batch's gradient to this norm at most (the DDPM reference: 1).
            progress: show a bar.

        Parameters, ``.grad``, buffers, each module's training flag and torch's random state are
        unchanged afterwards, also when something raises. Raises ValueError for an empty loader,
        and for a gradient with NaN or infinity, naming its parameter.
        """
        _check_choice("weighting", weighting, _WEIGHTINGS)
        saliency = cls(model, score)
        with (
            eval_mode(model),
            _kept_random_state(model),
            torch.enable_grad(),
            saliency._measurement(clip_norm) as measurement,
        ):
            first_size = 0
            first_size = 0
            for inputs, targets in _batches(loader, model, progress):
                if weighting == "sample" and score != "per_sample":
                    first_size = first_size or _size(targets, inputs)
                    measurement.weight = _size(targets, inputs) / first_size
                _checked_loss(loss_fn(model(inputs), targets)).backward()  # type: ignore[no-untyped-call]
        return saliency

    # --- gathering --------------------------------------------------------------------------------

    def accumulate(self, weight: float = 1.0) -> None:
        """Add the gradients that are there, each ``weight`` times; ``.grad`` is not touched.

        Raises ValueError, and adds nothing, if no parameter has a gradient or one holds NaN or
        infinity; it is named.
        """
        sums = self._growing()
        if self.score == "per_sample":
            raise ValueError(
                "accumulate(): with score='per_sample' magnitudes are taken within backward(), and "
                "the gradients that are there are sums over the batch; use measure()"
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight must be positive and finite, found {weight}")
        grads = {n: p.grad for n, p in sums.parameters.items() if p.grad is not None}
        if not grads:
            raise ValueError(
                "accumulate(): no parameter has a gradient; call it after backward() and before "
                "zero_grad(), and outside measure()"
            )
        mesh = sums.mesh
        if mesh is not None and mesh.size() > 1 and sums.rule != "sum":
            raise ValueError(
                "accumulate(): |g| and g² of each process must be taken before FSDP averages "
                "gradients, and these are averaged: expected score='abs_of_sum'; for others run "
                "backward() within Saliency(model, score=...).measure()"
            )
        strided = ((n, peak(g)) for n, g in grads.items() if g.layout == torch.strided)
        bad = first_nonfinite(strided, mesh)
        if bad is not None:
            raise ValueError(
                f"the gradient of {bad!r} holds NaN or infinity; nothing was added. Leave the "
                "batch out, or find what made it"
            )
        sums.add(grads, weight)
        sums.count += 1

    @contextmanager
    def measure(
        self, *, clip_norm: float | None = None, loss_reduction: str = "mean"
    ) -> Iterator[Saliency]:
        """Within, each ``backward()`` adds its gradients and frees them.

        ``.grad`` is None within and afterwards what it was before; given a module, so are its
        buffers. Modes are yours: call ``model.eval()`` first, as SalUn does, or use
        :meth:`from_data`. With ``clip_norm``, the gradients of one backward over all parameters
        are first scaled to that norm at most (the reference's DDPM: 1.0). NaN or infinity raises
        ValueError out of ``backward()``, naming the parameter; without ``clip_norm`` part of the
        batch is in the scores by then, so that they can only be :meth:`reset`.

        Beyond parameters and scores, memory is needed for one gradient (for all with
        ``clip_norm``), provided that a backward uses each parameter once: where a loss calls the
        model twice, autograd keeps the gradients of one call until it has those of the other. Call
        it once on the joined batch instead, as for guidance.

        ``loss_reduction``: with score="per_sample", whether the loss is the "mean" of the samples'
        losses, so that gradients are multiplied by their number, or their "sum". There
        ``backward()`` makes no gradients of layers that :mod:`.per_sample` has a rule for, and
        those of batch norm exist in eval mode only.
        """
        with self._measurement(clip_norm, loss_reduction):
            yield self

    def all_reduce(self, group: ProcessGroup | None = None) -> None:
        """Add up what the ranks of ``group`` (None: all) measured, each on its share of the data.

        Every rank calls it once, after its last batch. All then hold the same scores, to the bit,
        and build the same masks; :attr:`batches` counts the batches of all ranks, and a rank that
        had none adds zeros. The raw sums are added, with their sign for "abs_of_sum": the result
        is that of one process with all the data, up to the rounding of fp32 sums. Works in place,
        one tensor at a time; a single rank keeps what it has.

        Raises, on every rank and before anything is added: ValueError where the ranks differ in
        score, parameter names, their order or shapes; RuntimeError where one of them has loaded,
        unusable or already added scores, or is still within :meth:`measure`; and RuntimeError
        without a process group.
        """
        if self._is_sharded:
            return
        try:
            sums = self._growing()
            if self._measuring:
                raise RuntimeError("leave measure() before all_reduce()")
            if sums.ranks > 1:
                raise RuntimeError(
                    f"these scores are already the sums of {sums.ranks} ranks, and adding them up "
                    "again would count them several times; reset() and measure anew"
                )
        except RuntimeError:
            decline(self._shaped(), group)
            raise
        add_up_ranks(sums, group)

    @property
    def added_up(self) -> bool:
        """Whether every process has the same scores, or its blocks of them: after
        :meth:`all_reduce`, of sharded parameters, and where they were given or loaded."""
        return self._sums is None or self._sums.ranks > 1 or self._is_sharded

    def reset(self) -> None:
        """Begin anew with zeros."""
        sums = self._growing(whole=False)
        if self._measuring:
            raise RuntimeError("leave measure() before reset()")
        self._sums = ScoreSums(sums.parameters, sums.rule)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self._shaped())

    @property
    def numel(self) -> int:
        """N: how many weights have a score."""
        return sum(tensor.numel() for tensor in self._shaped().values())

    @property
    def batches(self) -> int:
        """How many times gradients were added."""
        return self._sums.count if self._sums is not None else 0

    def __getitem__(self, name: str) -> Tensor:
        """The fp32 scores of a parameter as ranked (magnitudes), a copy."""
        own = names.match([name], self._shaped()).get(name)
        if own is None:
            near = ", ".join(map(repr, self.names[:3]))
            raise KeyError(f"no scores for {name!r}; they begin with {near}")
        return self._raw()[own].abs()

    def __repr__(self) -> str:
        return (
            f"Saliency({self.score!r}, {len(self.names)} parameters, {self.numel:,} weights, "
            f"{self.batches} batches)"
        )

    # --- selecting --------------------------------------------------------------------------------

    def mask(
        self,
        density: float,
        *,
        scope: str = "global",
        which: str = "largest",
        include: Patterns = None,
        exclude: Patterns = None,
        seed: int = 0,
        nonfinite: str = "error",
    ) -> SaliencyMask:
        """The mask of exactly int(N · density) weights.

        Args:
            density: in (0, 1]; the product is taken in double and truncated, as the reference does.
            scope: "global" ranks all weights together; "tensor" takes int(n · density) of each
                parameter of n weights.
            which: "largest" scores (SalUn), "smallest", or "random": as many weights drawn
                uniformly by ``seed``, the control, for which nothing need have been measured.
            include: names or globs; only these parameters may be selected. None: all.
            exclude: names or globs of parameters that may not be selected.
                What ``include`` and ``exclude`` rule out stays frozen: it is in the mask with no
                bit set, and its weights do not count into N.
            nonfinite: "error" raises ValueError naming the parameter whose scores hold NaN or
                infinity; "reference" ranks infinity highest and NaN lowest.

        Ties go to the earlier parameter, then to the lower row-major index. The same scores give
        the same bits on every device, for any number of threads, any memory format, and any number
        of processes over which they are sharded (FSDP2). There every process calls this, and the
        whole mask is gathered; :meth:`sharded_mask` leaves each its own bits.
        """
        words, count, score = self._selected(
            density, scope, which, include, exclude, seed, nonfinite
        )
        if self._is_sharded:
            return self._blocks_of_mask(words, count, score).whole()
        shapes = {name: tensor.shape for name, tensor in self._shaped().items()}
        return SaliencyMask(words, shapes, score=score)

    def sharded_mask(
        self,
        density: float,
        *,
        scope: str = "global",
        which: str = "largest",
        include: Patterns = None,
        exclude: Patterns = None,
        seed: int = 0,
        nonfinite: str = "error",
    ) -> ShardedMask:
        """As :meth:`mask`, for sharded scores: each process gets the bits of its blocks.

        Every process calls this. Scores stay where they are: histograms of 16 KiB are added up,
        three of them, and where only some of the ties at the cut are wanted at most 64 KiB a few
        times more. Raises ValueError where scores are not sharded.
        """
        if not self._is_sharded:
            raise ValueError(
                "sharded_mask: expected scores of sharded parameters (fully_shard), found whole "
                "ones; use mask()"
            )
        return self._blocks_of_mask(
            *self._selected(density, scope, which, include, exclude, seed, nonfinite)
        )

    def threshold(
        self,
        density: float,
        *,
        which: str = "largest",
        include: Patterns = None,
        exclude: Patterns = None,
        nonfinite: str = "error",
    ) -> float:
        """Score of the last weight that :meth:`mask` would select globally: SalUn's γ.

        Infinite (negative for "smallest") if int(N · density) is 0.
        """
        _check_density(density)
        _check_choice("which", which, _WHICH[:2])
        _check_choice("nonfinite", nonfinite, _NONFINITE)
        tensors, chosen = self._ready(), self._eligible(include, exclude)
        k = int(sum(tensors[name].numel() for name in chosen) * density)
        _, threshold = select(chosen, tensors, k, which == "largest", nonfinite)
        return float(threshold)

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write the fp32 sums (signed for "abs_of_sum") to a safetensors file, atomically.

        Of sharded scores the whole ones are gathered: every process calls this, and writes; give
        each a path of its own, or a folder that they do not share.
        """
        tensors = {name: gathered(sums).cpu() for name, sums in self._ready().items()}
        facts = {
            "names": list(tensors),
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
            "score": self.score,
        }
        files.save_tensors(path, tensors, kind=_KIND, version=_VERSION, facts=facts)

    @classmethod
    def load(cls, path: PathLike) -> Saliency:
        """Scores of a file of :meth:`save`, on the CPU: to be ranked, not added to.

        Raises FileFormatError (a ValueError) for a truncated, altered or foreign file.
        """
        tensors, facts = files.load_tensors(path, kind=_KIND, version=_VERSION)
        with files.understood(path):
            ordered = {name: tensors.pop(name) for name in facts["names"]}
            loaded = cls.from_dict(ordered, score=str(facts["score"]))
        if tensors:
            raise FileFormatError(path, "it holds tensors that its header does not name")
        return loaded

    # --- inner ------------------------------------------------------------------------------------

    @contextmanager
    def _measurement(
        self, clip_norm: float | None, loss_reduction: str = "mean"
    ) -> Iterator[Measurement]:
        sums = self._growing()
        _check_choice("loss_reduction", loss_reduction, _REDUCTIONS)
        if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
            raise ValueError(f"clip_norm must be positive and finite, or None; found {clip_norm}")
        if self._measuring:
            raise RuntimeError("measure() is already active; leave it before entering it again")
        self._measuring = True
        try:
            with self._gathering(sums, clip_norm, loss_reduction) as measurement:
                yield measurement
        finally:
            self._measuring = False

    def _gathering(
        self, sums: ScoreSums, clip_norm: float | None, loss_reduction: str
    ) -> Measurement:
        if self.score != "per_sample":
            return Measurement(sums, clip_norm=clip_norm, module=self._module)
        if clip_norm is not None:
            raise ValueError(
                "clip_norm: expected None with score='per_sample', where no gradient of a batch "
                "is made that could be clipped; use 'abs_of_sum'"
            )
        from salun_fast._per_sample_measurement import PerSampleMeasurement

        assert self._module is not None
        return PerSampleMeasurement(sums, self._module, mean=loss_reduction == "mean")

    def _growing(self, whole: bool = True) -> ScoreSums:
        """The sums, to be added to."""
        if self._sums is None:
            raise RuntimeError(
                "these scores were given or loaded, so no gradients can be added; make a "
                "Saliency(model) for that"
            )
        if whole:
            self._check_whole(self._sums)
        return self._sums

    @staticmethod
    def _check_whole(sums: ScoreSums) -> None:
        if sums.broken is not None:
            raise RuntimeError(
                f"these scores cannot be used: {sums.broken}. Call reset() and measure again"
            )

    def _shaped(self) -> Mapping[str, Tensor]:
        """Tensors with the shapes and devices of the scores, without making any."""
        return self._given if self._sums is None else self._sums.parameters

    def _raw(self) -> dict[str, Tensor]:
        return self._given if self._sums is None else self._sums.tensors

    def _ready(self) -> dict[str, Tensor]:
        """The raw scores, to be ranked or saved: some batch went in, and each batch whole."""
        if self._sums is not None:
            self._check_whole(self._sums)
            if self._sums.count == 0:
                raise RuntimeError(
                    "nothing was measured yet; run backward() on the forget data within "
                    "measure(), or call accumulate() after it (is the forget set empty?)"
                )
        return self._raw()

    def _eligible(self, include: Patterns, exclude: Patterns) -> list[str]:
        everything = self.names
        passed = names.eligible(everything, include, exclude)
        chosen = [name for name, good in zip(everything, passed, strict=True) if good]
        if not chosen:
            raise ValueError("include and exclude leave no parameter to select from; widen them")
        return chosen

    def _selected(
        self,
        density: float,
        scope: str,
        which: str,
        include: Patterns,
        exclude: Patterns,
        seed: int,
        nonfinite: str,
    ) -> tuple[dict[str, Tensor], int, str]:
        """Words of what this process holds, how many bits there are in all, and the mask's score"""
        _check_density(density)
        _check_choice("scope", scope, _SCOPES)
        _check_choice("which", which, _WHICH)
        _check_choice("nonfinite", nonfinite, _NONFINITE)
        tensors = self._shaped() if which == "random" else self._ready()
        chosen = self._eligible(include, exclude)
        source = random_keys(tensors, chosen, seed) if which == "random" else tensors
        words, count = {name: no_words(tensor) for name, tensor in tensors.items()}, 0
        for group in [chosen] if scope == "global" else [[name] for name in chosen]:
            k = int(sum(tensors[name].numel() for name in group) * density)
            picked, _ = select(group, source, k, which != "smallest", nonfinite)
            for name, packed in zip(group, picked, strict=True):
                words[name] = packed.to(tensors[name].device)
            count += k
        score = f"random, seed {seed}" if which == "random" else self._label(which, scope)
        return words, count, score

    def _blocks_of_mask(self, words: dict[str, Tensor], count: int, score: str) -> ShardedMask:
        layouts = {name: Layout.of(tensor) for name, tensor in self._shaped().items()}
        return ShardedMask(words, layouts, count=count, score=score)

    @property
    def _is_sharded(self) -> bool:
        return common_mesh(self._shaped().values()) is not None

    def _label(self, which: str, scope: str) -> str:
        smallest = ", smallest" if which == "smallest" else ""
        return f"{self.score}{smallest}{', per tensor' if scope == 'tensor' else ''}"


def _check_density(density: float) -> None:
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(
            f"density must be a number in (0, 1], the share of weights that may move; found "
            f"{density!r}"
        )


def _check_choice(role: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{role} must be one of {', '.join(map(repr, known))}, found {value!r}")


def _check_module(module: nn.Module | None, parameters: Mapping[str, Tensor]) -> None:
    """What score="per_sample" asks for: layers whose inputs it can see."""
    if module is None:
        raise ValueError(
            "score='per_sample' needs the module, to see what goes into its layers; found "
            "parameters alone. Use Saliency(model, score=...), or measure_saliency(score, "
            "module=model)"
        )
    if common_mesh(parameters.values()) is not None:
        raise ValueError(
            "score='per_sample': expected whole parameters, found sharded ones (FSDP2); measure "
            "before fully_shard(), or use 'sum_of_abs'"
        )
    known = {id(param) for param in module.parameters()}
    foreign = next((n for n, param in parameters.items() if id(param) not in known), None)
    if foreign is not None:
        raise ValueError(
            f"score='per_sample': {foreign!r} is no parameter of the module that was given; pass "
            "the model that owns it"
        )
    if type(module).__name__ == "DistributedDataParallel":  # not imported: it is slow to
        raise ValueError(
            "score='per_sample': DistributedDataParallel waits for gradients that are not made; "
            "measure ddp.module, and call that. select() adds up the ranks all the same"
        )
    if hasattr(module, "_orig_mod"):
        raise ValueError(
            "score='per_sample' cannot see into a compiled model; measure the model that was "
            "compiled (model._orig_mod), which has the same parameters"
        )


def _check_real(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_complex():
        found = type(tensor).__name__
        if isinstance(tensor, Tensor):
            found = str(tensor.dtype if tensor.is_complex() else tensor.layout)
        raise TypeError(f"{name!r}: expected a dense real tensor, found {found}; leave it out")


# --- passing over data ----------------------------------------------------------------------------


@contextmanager
def _kept_random_state(model: nn.Module) -> Iterator[None]:
    """torch's generators, on the CPU and the model's GPUs, as they were."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


def _batches(loader: Iterable[Any], model: nn.Module, progress: bool) -> Iterator[tuple[Any, Any]]:
    """Checked pairs on the model's device; ValueError for none at all."""
    device = next(model.parameters()).device
    number = 0
    for batch in _with_bar(loader) if progress else loader:
        number += 1
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(
                f"batch {number}: expected a pair (inputs, targets), found "
                f"{type(batch).__name__}; for other batches run backward() within measure()"
            )
        inputs, targets = (x.to(device) if isinstance(x, Tensor) else x for x in batch)
        yield inputs, targets
    if number == 0:
        raise ValueError("the loader gave no batch: the forget set is empty")


def _with_bar(loader: Iterable[Any]) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    total = len(loader) if isinstance(loader, Sized) else None
    return track(loader, description="Saliency", total=total, console=Console(stderr=True))


def _size(targets: Any, inputs: Any) -> int:
    return len(targets) if isinstance(targets, Tensor) and targets.dim() else len(inputs)


def _checked_loss(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn must return the batch's mean loss, a 0-dim tensor; found {found}"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss depends on no parameter that requires a gradient; is the model detached or "
            "run under no_grad?"
        )
    return loss
