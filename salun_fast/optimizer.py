"""SalUnOptimizer: any torch optimizer with weights outside a saliency mask held to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from salun_fast import names, ops
from salun_fast._capture import capturing
from salun_fast._compact_state import expand_packed, lay_anew
from salun_fast._fused_step import (
    FUSED_CLASSES,
    STATE_KEYS,
    HalfPrecision,
    adopt_state,
    fused_step,
    ready_state,
)
from salun_fast._general_step import adopt_counters, general_step
from salun_fast._mask_check import MaskNotApplied, MaskWitness
from salun_fast._measurement import call_after, past_hooks
from salun_fast._optimizer_checks import (
    check_gradient,
    check_group,
    check_mask,
    check_names,
    check_options,
    refuse_compact_fp64,
)
from salun_fast._optimizer_state import (
    FINGERPRINT,
    MASK,
    AnyMask,
    checked_state,
    fingerprint_of,
    mask_to_state,
)
from salun_fast._placed_mask import (
    Item,
    NonfiniteGradientError,
    Place,
    PlacedMask,
    masked_gradient,
    refuse_nonfinite,
)
from salun_fast._shards import (
    beside,
    first_index,
    gathered,
    is_one_of_several,
    is_sharded,
    like,
    local,
)
from salun_fast._stand_in import on_the_wrapped_one
from salun_fast._step_plan import StepPlan
from salun_fast.distributed import ShardedMask
from salun_fast.mask import SaliencyMask
from salun_fast.saliency import Saliency

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MaskNotApplied", "NonfiniteGradientError", "SalUnOptimizer"]

Work = list[list[tuple[Item, dict[str, Any]]]]  # per group: what is stepped, and the group
# How many steps without a visible gradient (learning-rate warm-up, half precision) to look at.
_CHECKED_STEPS = 10


class SalUnOptimizer(Optimizer):
    r"""Wrap an optimizer class so that only the weights a saliency mask selects are updated.

    With m the mask, one step is :math:`\theta \leftarrow m \odot \mathrm{step}(\theta) + (1 - m)
    \odot \theta` (SalUn, section 4), and the same for the optimizer's state. Frozen weights and
    their state keep every byte under weight decay, momentum and NaN gradients alike.

    ``params``: as every ``torch.optim`` class takes them; ``model.named_parameters()`` gives the
    names that masks go by, unnamed parameters are called "group.index" ("0.3").
    ``optimizer_class``, ``defaults``: the class and its keyword arguments, validated by the class
    itself. SGD, Adam and AdamW run fused, in one pass over memory, with fp32 state for fp16 and
    bf16 parameters; ``foreach``, ``fused`` and ``capturable``, where the class has them, are
    accepted and change nothing, save that under ``fused=False`` a ``GradScaler`` unscales and skips
    by itself, as Lightning wants of optimizers whose gradients it clips. Every other class, and
    fp64 parameters, run through ``_general_step``, where these options are the wrapped step's own.
    ``mask``: a :class:`SaliencyMask`, or None for the wrapped optimizer as it is. A parameter
    without an entry in the mask moves as a whole.
    ``state``: "dense", or "compact" for SGD, Adam and AdamW to keep moments of the selected weights
    alone: memory is density times that of dense state, for the same bits. ``state[param]`` then
    holds vectors in the memory order of the parameter (what this process holds of it); parameters
    without an entry in the mask, and masters of half precision, stay dense. Checkpoints are dense
    either way and load either way. Another mask re-lays the state: weights selected before and
    after keep their moments, newly selected ones begin at zero, and what is frozen loses its own,
    which dense state would keep. Neither :meth:`unmasked` nor ``freeze="gradient"`` can be had.
    ``freeze``: "exact", or "gradient" to mask gradients only, as SalUn's public code did before
    2026-02-28: weight decay and momentum then move "frozen" weights.
    ``half_precision``: how fp16 and bf16 parameters take the fp32 results of SGD, Adam and AdamW:
    rounded to the "nearest"; by way of a "master" copy in fp32, kept in the state as
    ``master_param``; or, bf16 only, by "stochastic" rounding, which needs no memory and is right
    on average. Its random bits depend on ``seed``, the step and the weight alone. A master is the
    parameter: weights that were written behind the optimizer's back are overwritten by it.
    ``error_if_nonfinite``: refuse a step whose gradient is NaN or infinite for a weight that would
    move, naming the parameter, with nothing changed; costs one more pass over the gradients, and
    steps under ``torch.compile`` are not checked. Off, such values spread as in torch.

    ``.grad`` is never written by a step. The first step after the mask is set checks that it acts,
    and raises :class:`MaskNotApplied` if not; steps under ``torch.compile`` are not checked.

    On a GPU a fused step waits for nothing: state, ``step`` included, and mask lie beside the
    parameters, and a tensor ``lr`` is read by the kernel. Only the check of the first step and
    ``error_if_nonfinite`` fetch values. So after one ordinary step, which creates the state, a
    step can be captured in a CUDA graph, which neither check looks into. An ``lr`` that is to
    change between replays must be a tensor on the GPU; a number, or a tensor on the CPU, is read
    once, at capture.
    """

    def __init__(
        self,
        params: ParamsT,
        optimizer_class: type[Optimizer] = torch.optim.SGD,
        *,
        mask: SaliencyMask | None = None,
        state: Literal["dense", "compact"] = "dense",
        freeze: Literal["exact", "gradient"] = "exact",
        half_precision: Literal["nearest", "stochastic", "master"] = "nearest",
        seed: int = 0,
        error_if_nonfinite: bool = False,
        **defaults: Any,
    ) -> None:
        check_options(optimizer_class, state, freeze, half_precision, seed, defaults)
        if issubclass(optimizer_class, SalUnOptimizer):
            raise ValueError("optimizer_class is a SalUnOptimizer already; pass the class it wraps")
        self._optimizer_class = optimizer_class
        self._freeze = freeze
        self._half = HalfPrecision(half_precision, seed)
        self._compact = state == "compact"
        self._error_if_nonfinite = error_if_nonfinite
        self._mask: AnyMask | None = None
        self._reset_transient()
        # The wrapped instance validates, supplies defaults and, on the general path, steps. State
        # and groups are shared: they are one and the same objects in both.
        self._wrapped = optimizer_class(params, **defaults)
        groups, initial_state = self._wrapped.param_groups, self._wrapped.state
        super().__init__(groups, self._wrapped.defaults)
        self.state.update(initial_state)
        self.set_mask(mask)

    def _reset_transient(self) -> None:
        self.saliency: Saliency | None = None
        self._measuring = False
        self._dense_steps = False
        self._in_backward = False
        self._checks_left = 0
        self._placed = PlacedMask(None)
        self._origins: dict[str, int] = {}
        self._plan: StepPlan | None = None

    # --- mask -------------------------------------------------------------------------------------

    @property
    def mask(self) -> SaliencyMask | ShardedMask | None:
        """The mask in force; None where every weight moves. Of sharded parameters a
        :class:`~salun_fast.distributed.ShardedMask`: each process has the bits of its blocks."""
        return self._mask

    @on_the_wrapped_one
    def set_mask(self, mask: SaliencyMask | ShardedMask | None, *, strict: bool = True) -> None:
        """Freeze what ``mask`` leaves out, from the next step on; None frees every weight.

        State is kept: weights that become frozen keep theirs untouched; compact state is re-laid
        (see ``state`` of the class). Names match as in
        :meth:`SaliencyMask.check`, and what does not fit raises ValueError; with ``strict=False``
        it is passed over: such parameters move as a whole. A mask that selects no weight which
        this optimizer trains is an error either way. Of a whole mask, each process keeps the bits
        of the blocks that it holds of sharded parameters.
        """
        named = list(self._named())
        if isinstance(mask, SaliencyMask) and any(is_sharded(param) for _, param in named):
            mask = ShardedMask.of(mask, named, strict=strict)
        if mask is not None:
            check_mask(mask, named, strict)
        self._put_in_force(mask)

    def _put_in_force(self, mask: AnyMask | None) -> None:
        self._mask = mask
        self._checks_left = _CHECKED_STEPS if mask is not None else 0
        before = self._placed
        self._place()
        if self._compact:
            for name, param in self._named():
                self._lay_anew(name, param, before.known(param))

    def _lay_anew(self, name: str, param: Tensor, before: Place | None) -> None:
        """Compact state goes where the words of ``param`` now lie."""
        now = self._placed.at(name, param)
        if before is not None and before is not now and param in self.state:
            lay_anew(self.state[param], param, before, now)

    def _place(self) -> None:
        self._plan = None
        self._placed = PlacedMask(self._mask, compact=self._compact)
        self._placed.place(self._named())
        self._origins = self._flat_origins()

    @on_the_wrapped_one
    @contextmanager
    def measure_saliency(
        self,
        score: str = "abs_of_sum",
        clip_norm: float | None = None,
        *,
        module: nn.Module | None = None,
    ) -> Iterator[Saliency]:
        """Add the gradient of each ``backward()`` inside to ``self.saliency``; no step meanwhile.

        ``score`` and ``clip_norm`` as in :class:`Saliency`. Starts from zero at each call. Call
        ``model.eval()`` first, as SalUn does: the optimizer knows no modules, so in train mode
        batch-norm statistics would move. ``module``: the FSDP model, which other scores than
        "abs_of_sum" need (|g| is taken of each process's gradient).
        """
        trainable = [(name, param) for name, param in self._named() if param.requires_grad]
        saliency = Saliency(trainable, score=score, module=module)
        self._measuring = True
        try:
            with saliency.measure(clip_norm=clip_norm):
                yield saliency
        finally:
            self._measuring = False
        self.saliency = saliency

    @on_the_wrapped_one
    def select(
        self, density: float, *, group: ProcessGroup | None = None, **options: Any
    ) -> SaliencyMask | ShardedMask:
        """Select the most salient weights, freeze all others, and return the mask.

        ``density``: share of weights that may move; ``options`` as in :meth:`Saliency.mask`.

        With several processes (DDP, FSDP2, any launcher) every process calls this, and all get one
        mask: what each measured on its share of the forget data is added up over ``group`` (None:
        all), as by :meth:`Saliency.all_reduce`. Sharded parameters get a ``ShardedMask``. A process
        that trains a model of its own calls ``set_mask(optimizer.saliency.mask(density))``.
        """
        saliency = self.saliency
        if saliency is None:
            raise RuntimeError(
                "SalUnOptimizer.select needs scores and found none; run the forget data's "
                "backward passes inside `with optimizer.measure_saliency():` first"
            )
        if is_one_of_several(group) and not saliency.added_up:
            saliency.all_reduce(group)
        sharded = any(is_sharded(param) for _, param in self._named())
        make = saliency.sharded_mask if sharded else saliency.mask
        mask: SaliencyMask | ShardedMask = make(density, **options)
        self.set_mask(mask)
        return mask

    @on_the_wrapped_one
    @contextmanager
    def unmasked(self) -> Iterator[None]:
        """Steps inside are dense; afterwards frozen weights keep the values they then have.

        Raises ValueError for compact state, which lacks the moments of frozen weights.
        """
        if self._compact:
            raise ValueError(
                "unmasked() steps every weight, and state='compact' keeps moments of the selected "
                "ones alone: use state='dense'"
            )
        outer, self._dense_steps = self._dense_steps, True
        try:
            yield
        finally:
            self._dense_steps = outer

    @torch.no_grad()
    def clip_grad_norm_(
        self,
        max_norm: float,
        masked: bool = False,
        *,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
    ) -> Tensor:
        """Scale all gradients in place to a norm of at most ``max_norm``; returns the norm found.

        ``masked=False``: the norm of all gradients (clip before masking, as SalUn's diffusion
        loop); ``masked=True``: of the gradients of selected weights alone.
        """
        if self._in_backward:
            raise RuntimeError(
                "clip_grad_norm_ needs all gradients at once, and step_in_backward() frees each as "
                "it arrives; leave one of the two out"
            )
        items = [item for work in self._collect() for item, _ in work]
        grads = [masked_gradient(item) if masked else item.grad for item in items]
        grads = [like(grad, item.owner) for grad, item in zip(grads, items, strict=True)]
        norm = gathered(torch.nn.utils.get_total_norm(grads, norm_type, error_if_nonfinite))
        torch.nn.utils.clip_grads_with_norm_([item.owner for item in items], max_norm, norm)
        return norm

    # --- step -------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the wrapped optimizer on the selected weights; returns the closure's loss.

        Raises TypeError or ValueError naming a parameter whose gradient cannot be used (sparse,
        complex); nothing has changed then.
        """
        self._refuse_while_measuring()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if torch.compiler.is_compiling() and isinstance(loss, Tensor):
                loss = loss.detach()  # a graph may not return what it has gone backward from
        if torch.compiler.is_compiling() and not self._fits_graphs:
            from salun_fast import _graphs

            _graphs.step_outside(self)
        elif torch.compiler.is_compiling():
            self._step_on(self._collect())
        elif not self._step_by_plan():
            work = self._collect()
            self._step_on(work)
            self._plan_for(work)
        return loss

    # torch's schedulers put a wrapper of theirs around step, which torch.compile cannot trace, to
    # learn that it was called. They leave it out where this is set, and ask for _opt_called.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        """``param_groups`` for what is traced: where that attribute of an optimizer is read before
        ``backward()`` in a graph, dynamo loses the gradients (torch 2.14)."""
        if not torch.compiler.is_compiling():
            return self.param_groups
        groups: list[dict[str, Any]] = vars(self)["param_groups"]
        return groups

    @property
    def _opt_called(self) -> bool:
        """Whether there was a step: each leaves state."""
        return bool(self.state)

    # Dynamo has a single literal None, and where a gradient is set to that and read again, it takes
    # it for that gradient wherever it stands in this process (torch 2.14).
    _no_gradient: Tensor | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's, and ``torch.compile`` can trace it: torch keeps its own out of graphs."""
        if not torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
            return
        for group in self._groups:
            for param in group["params"]:
                if set_to_none:
                    param.grad = self._no_gradient
                elif param.grad is not None:
                    param.grad.zero_()

    @on_the_wrapped_one
    @contextmanager
    def step_in_backward(self) -> Iterator[None]:
        """Within, every parameter moves as soon as ``backward()`` has completed its gradient, which
        is freed then: gradients of different parameters never exist together.

        The bits are those of a ``step()`` after each ``backward()``; one that is still called finds
        nothing left to do. Every backward is a step, so: no gradient accumulation, no
        :meth:`clip_grad_norm_`, no ``GradScaler``; hooks on ``step`` do not run. With FSDP2
        gradients are reduced first. Raises RuntimeError where they would not be (DDP), and
        ValueError with ``error_if_nonfinite``, which looks at all gradients before a weight moves.
        """
        placed = {
            param: (index, name, group)
            for index, group in enumerate(self.param_groups)
            for name, param in _named_in(index, group)
        }
        self._check_steps_in_backward(placed)

        @torch.no_grad()
        def step(param: Tensor) -> None:
            index, name, group = placed[param]
            unreached.pop(param, None)
            if param.grad is None:
                return
            self._refuse_while_measuring()
            work: Work = [[] for _ in self.param_groups]
            work[index] = [(self._item(name, param, param.grad), group)]
            self._step_on(work)
            param.grad = None

        unreached = {param: (name, param, param.grad) for param, (_, name, _) in placed.items()}
        hooks = [call_after(param, step) for param in placed if param.requires_grad]
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False
            for hook in hooks:
                hook.remove()
        missed = past_hooks(unreached.values())
        if missed is not None:
            raise RuntimeError(f"{missed}; it is in .grad, and no step was taken by it")

    def _check_steps_in_backward(self, params: Iterable[Tensor]) -> None:
        if self._in_backward:
            raise RuntimeError("step_in_backward() is already active; leave it first")
        if self._error_if_nonfinite:
            raise ValueError(
                "step_in_backward: expected error_if_nonfinite=False, as weights move before all "
                "gradients are known; leave one of the two out"
            )
        if is_one_of_several() and not all(is_sharded(param) for param in params):
            raise RuntimeError(
                "step_in_backward: with several processes a gradient arrives before DDP has "
                "averaged it, and the processes would drift apart; shard the model by "
                "fully_shard() (FSDP2), which reduces first, or call step() after backward()"
            )

    @property
    def _fits_graphs(self) -> bool:
        """Whether ``torch.compile`` can trace a step; it cannot see the strides of blocks."""
        params = [param for group in self._groups for param in group["params"]]
        # Not is_sharded(): dynamo says of a DTensor that it has no to_local.
        sharded = any(hasattr(type(param), "to_local") for param in params)
        return self._runs_fused and not sharded

    def _step_by_plan(self) -> bool:
        """Take the step as the last one; False, with nothing changed, where it is another."""
        if self._plan is None or self._dense_steps or self._checks_left:
            return False
        grad_scale, found_inf = self._scaling()
        return self._plan.step(self.param_groups, self.state, grad_scale, found_inf)

    def _plan_for(self, work: Work) -> None:
        """Keep what was collected for the next step, if that is all that a step looks at."""
        if self._dense_steps:
            return
        plain = self._runs_fused and self._freeze == "exact" and not self._error_if_nonfinite
        whole = all(item.param is item.owner for pairs in work for item, _ in pairs)
        self._plan = None
        if plain and whole:
            self._plan = StepPlan(self.param_groups, self.state, work, self._half)

    def _step_on(self, work: Work) -> None:
        if self._error_if_nonfinite and self._sees_values():
            refuse_nonfinite([item for pairs in work for item, _ in pairs])
        witness = self._witness(work)
        if self._runs_fused:
            self._fused_step(work)
        else:
            self._general_step(work)
        if witness is not None:
            witness.verify()
            self._checks_left = 0 if witness.expects_change else self._checks_left - 1

    @property
    def _runs_fused(self) -> bool:
        return self._optimizer_class in FUSED_CLASSES and all(
            param.dtype in ops.FLOATS for group in self._groups for param in group["params"]
        )

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``GradScaler`` leaves unscaling and skipping to ``step``: on the fused path,
        unless ``fused=False`` asks it to unscale first, as Lightning must before it clips."""
        return self._runs_fused and all(g.get("fused") is not False for g in self.param_groups)

    def _collect(self) -> Work:
        """Per group the parameters that have a gradient; all are checked before any is stepped."""
        if torch.compiler.is_compiling():
            _meet_gradients(self._groups)
        work: Work = []
        for index, group in enumerate(self._groups):
            items: dict[int, tuple[Item, dict[str, Any]]] = {}  # by id: hashing tensors is slow
            for name, param in _named_in(index, group):
                grad = param.grad
                if grad is None or id(param) in items:
                    continue
                items[id(param)] = (self._item(name, param, grad), group)
            work.append(list(items.values()))
        return work

    def _item(self, name: str, param: Tensor, grad: Tensor) -> Item:
        check_gradient(name, grad)
        place = self._place_of(name, param)
        words = place.words[:0] if self._dense_steps else place.words
        origin = self._origin(name, param)
        return Item(name, local(param), beside(grad, param), words, param, origin, place)

    def _place_of(self, name: str, param: Tensor) -> Place:
        before = self._placed.known(param) if self._compact else None
        place = self._placed.at(name, param)
        if before is not None and before.stride != place.stride:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    f"'{name}' changed its strides, and its compact state must be laid out anew: "
                    "call step() once outside of the graph"
                )
            self._lay_anew(name, param, before)
        return place

    def _origin(self, name: str, param: Tensor) -> int:
        """Flat index of the first element here, by which stochastic rounding draws its bits."""
        if self._half.mode != "stochastic":
            return 0
        return self._origins[name] + first_index(param)

    def _flat_origins(self) -> dict[str, int]:
        """By name: how many weights lie before a parameter, whatever process holds them."""
        named = list(self._named())
        ends = accumulate(param.numel() for _, param in named)
        return {name: end - param.numel() for (name, param), end in zip(named, ends, strict=True)}

    def _fused_step(self, work: Work) -> None:
        grad_scale, found_inf = self._scaling()
        if torch.compiler.is_compiling():
            self._fill_state(tuple(tuple(item.name for item, _ in pairs) for pairs in work))
        for group, pairs in zip(self._groups, work, strict=True):
            items = [item for item, _ in pairs]
            if self._freeze == "gradient":
                items = [
                    item._replace(grad=masked_gradient(item), words=item.words[:0])
                    for item in items
                ]
            states = [self.state[item.owner] for item in items]
            fused_step(group, items, states, self._half, grad_scale, found_inf)

    def _scaling(self) -> tuple[Tensor | None, Tensor | None]:
        """What ``GradScaler`` leaves for a step."""
        return getattr(self, "grad_scale", None), getattr(self, "found_inf", None)

    def _fill_state(self, named: tuple[tuple[str, ...], ...]) -> None:
        """Make the state of these parameters, given by group; there is no need of gradients.

        Compilers call this as they trace. State made by a graph is not there yet when it is traced,
        and the second step would have to be compiled anew.
        """
        for index, chosen in enumerate(named):
            group = self.param_groups[index]
            items = [
                self._item(name, param, param)
                for name, param in _named_in(index, group)
                if name in chosen
            ]
            ready_state(group, items, [self.state[item.owner] for item in items])

    # As torch.compiler.assume_constant_result does, which would import all of the compiler.
    _fill_state._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _general_step(self, work: Work) -> None:
        if self._compact:
            refuse_compact_fp64(next(n for n, p in self._named() if p.dtype not in ops.FLOATS))
        self._share()
        items = [pair for pairs in work for pair in pairs]
        general_step(self._wrapped, items, restore=self._freeze == "exact")

    def _witness(self, work: Work) -> MaskWitness | None:
        """Checksums for the first masked steps; none once the mask was seen to act."""
        if torch.compiler.is_compiling() or not self._checks_left or self._freeze != "exact":
            return None
        if self._dense_steps or not self._sees_values():
            return None
        scale = getattr(self, "grad_scale", None)
        divisor = 1.0 if scale is None else float(scale)
        masked: list[tuple[Item, float]] = []
        for group, pairs in zip(self.param_groups, work, strict=True):
            items = [item for item, _ in pairs if item.words.numel()]
            if items:
                lr = float(group["lr"]) / divisor
                masked += [(item, lr) for item in items]
        return MaskWitness(masked) if masked else None

    def _sees_values(self) -> bool:
        """Whether this step can be checked: it is neither compiled, nor captured, nor skipped."""
        return not torch.compiler.is_compiling() and not capturing() and not self._skips()

    def _skips(self) -> bool:
        """Whether ``GradScaler`` found an overflow: this step changes nothing."""
        found_inf = getattr(self, "found_inf", None)
        return found_inf is not None and float(found_inf) != 0

    def _refuse_while_measuring(self) -> None:
        if not self._measuring:
            return
        # Distributed checkpointing calls step() with lr 0 to create state: nothing moves then. A
        # graph cannot look at a tensor.
        if torch.compiler.is_compiling() or any(float(g["lr"]) != 0 for g in self.param_groups):
            raise RuntimeError(
                "SalUnOptimizer.step was called inside measure_saliency(): saliency is the "
                "gradient at the original weights; move the step behind the with block"
            )

    # --- groups and checkpoints -------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; a parameter without an entry in the mask moves as a whole."""
        self._share()
        self._wrapped.add_param_group(param_group)
        try:
            check_names(self.param_groups[-1])
            added = list(_named_in(len(self.param_groups) - 1, self.param_groups[-1]))
            check_group(self.param_groups[-1], added, self._half.mode, compact=self._compact)
            self._placed.place(added)
            self._origins = self._flat_origins()
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the mask beside it under "salun_mask" and its fingerprint per group.

        Compact state is expanded to torch's shapes, zeros where weights are frozen.
        The mask of sharded parameters is left out: ``distributed.MaskState`` saves it.
        """

        def add_mask(_: Optimizer, packed: dict[str, Any]) -> None:
            if isinstance(self._mask, SaliencyMask):
                packed[MASK] = mask_to_state(self._mask)
            if self._compact:
                expand_packed(packed, self.param_groups, self._placed.known)
            for group in packed["param_groups"]:
                group[FINGERPRINT] = fingerprint_of(self._mask)

        handle = self.register_state_dict_post_hook(add_mask, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    @on_the_wrapped_one
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class, mask included, or of the wrapped torch class.

        A checkpoint without a mask leaves the present one. Raises ValueError, with nothing
        changed, where shapes or the mask do not fit.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            named = [list(_named_in(i, group)) for i, group in enumerate(self.param_groups)]
            keys = STATE_KEYS if self._runs_fused else ()
            mask, cleaned = checked_state(incoming, named, keys, self._mask)
            if mask is not None:
                # Groups that were added without an entry in the mask stay dense.
                flat = [pair for pairs in named for pair in pairs]
                covered = names.match([name for name, _ in flat], mask.shapes)
                check_mask(mask, [pair for pair in flat if pair[0] in covered], strict=True)
            loaded.update(cleaned, mask=mask)
            return cleaned

        def adopt(_: Optimizer) -> None:
            self._adopt(loaded)

        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(adopt, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _adopt(self, loaded: dict[str, Any]) -> None:
        adopt = adopt_state if self._runs_fused else adopt_counters
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            for param, key in zip(group["params"], saved["params"], strict=True):
                if key in loaded["state"]:
                    adopt(self.state[param], loaded["state"][key], param)
                    if self._half.mode != "master":  # it would grow stale
                        self.state[param].pop("master_param", None)
        self._put_in_force(loaded["mask"])

    def __getstate__(self) -> dict[str, Any]:
        kept = (
            "_wrapped",
            "_optimizer_class",
            "_freeze",
            "_half",
            "_compact",
            "_error_if_nonfinite",
            "_mask",
            "_checks_left",
        )
        if self._compact:  # a copy knows the strides of now alone, so state must lie as they do
            for name, param in self._named():
                self._place_of(name, param)
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Both for unpickling and, with state and groups alone, for ``load_state_dict``."""
        if "_wrapped" in state:
            self._reset_transient()
        super().__setstate__(state)
        # The wrapped class fills in what older checkpoints lack.
        self._wrapped.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._place()

    def _share(self) -> None:
        self._wrapped.param_groups, self._wrapped.state = self.param_groups, self.state

    # --- names and checks -------------------------------------------------------------------------

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for index, group in enumerate(self.param_groups):
            yield from _named_in(index, group)


def _named_in(index: int, group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Parameters of one group with the names that masks go by."""
    given = group.get("param_names")
    for position, param in enumerate(group["params"]):
        yield given[position] if given else f"{index}.{position}", param


def _meet_gradients(groups: list[dict[str, Any]]) -> list[Tensor | None]:
    """Show dynamo each gradient in its group. One that it meets by way of a dict with the parameter
    as key is compared by identity, and every step would compile anew."""
    return [param.grad for group in groups for param in group["params"]]
