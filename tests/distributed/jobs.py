"""What each process does in test_fsdp.py and test_checkpoint.py: functions of rank and world."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from salun_fast.distributed import MaskState, ShardedMask, whole_mask
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from salun_fast.saliency import SCORES, Saliency
from tests.conftest import clones, same_bytes
from tests.optimizer_cases import EVERY, FUSED, Case

Named = list[tuple[str, Tensor]]

# Sizes that no number of processes divides, and some smaller than it.
SHAPES = {"a": (7, 5), "conv": (5, 3, 3, 3), "bias": (1,), "few": (2, 40), "long": (1001,)}


def values(seed: int, kind: str = "distinct") -> dict[str, Tensor]:
    """Whole tensors of SHAPES, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if kind == "ties":
        return {name: tensor.round() for name, tensor in made.items()}
    if kind == "zero":
        return {name: torch.zeros_like(tensor) for name, tensor in made.items()}
    return made


def mesh_of(world: int, copies: int = 1) -> Any:
    if copies == 1:
        return init_device_mesh("cpu", (world,))
    return init_device_mesh("cpu", (copies, world // copies), mesh_dim_names=("copy", "shard"))


def spread(whole: Tensor, mesh: Any) -> DTensor:
    """Cut along dim 0 over the last dimension of the mesh, without sending anything."""
    from torch.distributed.tensor import Replicate, Shard

    from salun_fast._shards import Layout

    placements = (*[Replicate()] * (mesh.ndim - 1), Shard(0))
    layout = Layout(mesh, placements, tuple(whole.shape), whole.stride())
    made = layout.wrap(layout.block().cut(whole).clone())
    assert isinstance(made, DTensor)
    return made


# --- selection ------------------------------------------------------------------------------------


def select_alike(rank: int, world: int, folder: Path) -> None:
    mesh = mesh_of(world)
    for kind in ("distinct", "ties", "zero"):
        scores = values(1, kind)
        whole = Saliency.from_dict(scores)
        shards = Saliency.from_dict({name: spread(t, mesh) for name, t in scores.items()})
        assert shards.numel == whole.numel
        for options in (
            {"density": 0.5},
            {"density": 0.01},
            {"density": 1.0},
            {"density": 0.0001},
            {"density": 0.3, "which": "smallest"},
            {"density": 0.3, "which": "random", "seed": 5},
            {"density": 0.3, "scope": "tensor"},
            {"density": 0.3, "exclude": "conv"},
        ):
            expected = whole.mask(**options)
            mask = shards.sharded_mask(**options)
            assert mask.whole() == expected, (kind, options)
            assert shards.mask(**options) == expected
            assert (mask.count, mask.numel) == (expected.count, expected.numel)
            assert mask.score == expected.score
            assert mask.local.numel < whole.numel or world == 1
        for which in ("largest", "smallest"):
            threshold = shards.threshold(0.2, which=which)
            assert threshold == whole.threshold(0.2, which=which)
    mask.save(folder / "mask.safetensors")
    assert SaliencyMask.load(folder / "mask.safetensors") == expected
    shards.save(folder / f"scores{rank}.safetensors")
    assert Saliency.load(folder / f"scores{rank}.safetensors").mask(0.3) == whole.mask(0.3)
    scores["few"][1, -1] = float("nan")  # on one process only; all raise
    shards = Saliency.from_dict({name: spread(t, mesh) for name, t in scores.items()})
    assert "'few' holds NaN" in message(lambda: shards.sharded_mask(0.5))
    assert shards.mask(0.5, nonfinite="reference") == Saliency.from_dict(scores).mask(
        0.5, nonfinite="reference"
    )
    assert "missing" in message(lambda: mask.save(folder / "missing" / "mask.safetensors"))


def select_among_copies(rank: int, world: int) -> None:
    """Replicate x Shard: every weight lies on two processes and counts once."""
    mesh = mesh_of(world, copies=2)
    for kind in ("distinct", "ties"):
        scores = values(2, kind)
        shards = Saliency.from_dict({name: spread(t, mesh) for name, t in scores.items()})
        assert shards.sharded_mask(0.4).whole() == Saliency.from_dict(scores).mask(0.4)


def message(call: Any) -> str:
    """Of the error that ``call`` raises."""
    try:
        call()
    except (ValueError, RuntimeError, OSError, TypeError) as error:
        return str(error)
    return "no error"


# --- steps ----------------------------------------------------------------------------------------


def step_alike(rank: int, world: int) -> None:
    """Blocks of the same gradients: a sharded step has the bits of a step on whole tensors."""
    mesh = mesh_of(world)
    kept = SaliencyMask.from_dict({name: t > 0.3 for name, t in values(3).items()})
    for case in EVERY:
        if case.name == "rprop":
            continue  # torch's own does not run on DTensors
        whole, shards = both(case, mesh, kept)
        for step in range(3):
            give_gradients(whole, step)
            give_gradients(shards, step, mesh)
            if step == 2:  # by way of masked norms
                norms = [o.clip_grad_norm_(5.0, masked=True) for o in (whole, shards)]
                torch.testing.assert_close(*norms)
                give_gradients(whole, step)
                give_gradients(shards, step, mesh)
            whole.step()
            shards.step()
        assert_same(whole, shards, case.name)


def round_alike(rank: int, world: int) -> None:
    """bf16 blocks: masters are sharded, and random bits go by the flat index in the whole."""
    mesh = mesh_of(world)
    kept = SaliencyMask.from_dict({name: t > 0.3 for name, t in values(3).items()})
    for mode in ("master", "stochastic"):
        for case in FUSED:
            whole, shards = both(case, mesh, kept, torch.bfloat16, half_precision=mode, seed=3)
            for step in range(3):
                for optimizer, spread_over in ((whole, None), (shards, mesh)):
                    give_gradients(optimizer, step, spread_over)
                    optimizer.step()
            assert_same(whole, shards, f"{case.name}, {mode}")


def compact_alike(rank: int, world: int) -> None:
    """Compact state of blocks: plain vectors of the selected weights here, dense in checkpoints."""
    mesh = mesh_of(world)
    masks = [
        SaliencyMask.from_dict({name: t > 0.3 for name, t in values(seed).items()})
        for seed in (3, 4)
    ]
    for case in (FUSED[2], FUSED[6]):
        whole, shards = both(case, mesh, masks[0], state="compact")
        for step in range(5):
            if step == 2:
                shards.load_state_dict(shards.state_dict())
            if step == 3:
                for optimizer in (whole, shards):
                    optimizer.set_mask(masks[1])
            for optimizer, spread_over in ((whole, None), (shards, mesh)):
                give_gradients(optimizer, step, spread_over)
                optimizer.step()
        ours, theirs = whole.state_dict()["state"], shards.state_dict()["state"]
        for index, (name, param) in enumerate(shards._named()):
            assert same_bytes(list(whole._named())[index][1].detach(), full(param).detach()), name
            for key, value in ours[index].items():
                assert same_bytes(value, full(theirs[index][key])), (case.name, name, key)
            block = param.to_local()
            kept = shards.mask.local[name] if block.numel() else torch.zeros(0)
            for key, value in shards.state[param].items():
                if key != "step" and block.numel():
                    assert not isinstance(value, DTensor)
                    assert value.shape == (int(kept.sum()),)


def refuse_alike(rank: int, world: int) -> None:
    """A NaN on one process stops all; a frozen one stops none."""
    mesh = mesh_of(world)
    kept = {name: t > 0.3 for name, t in values(3).items()}
    options = {"error_if_nonfinite": True}
    _, optimizer = both(FUSED[1], mesh, SaliencyMask.from_dict(kept), **options)
    for moving in (True, False):
        grads = values(20)
        grads["long"][kept["long"].eq(moving).nonzero()[-1]] = float("nan")
        for name, param in optimizer._named():
            param.grad = spread(grads[name], mesh)
        before = clones([p.to_local() for _, p in optimizer._named()])
        said = message(optimizer.step)
        assert ("'long'" in said) == moving
        if moving:
            for (_, param), old in zip(optimizer._named(), before, strict=True):
                assert same_bytes(param.to_local(), old)


def both(
    case: Case,
    mesh: Any,
    mask: SaliencyMask,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[SalUnOptimizer, SalUnOptimizer]:
    """The same optimizer on whole tensors and on blocks."""
    start = {name: tensor.to(dtype) for name, tensor in values(0).items()}
    whole = [(name, nn.Parameter(tensor.clone())) for name, tensor in start.items()]
    shards = [(name, nn.Parameter(spread(tensor, mesh))) for name, tensor in start.items()]
    return case.salun(whole, mask=mask, **options), case.salun(shards, mask=mask, **options)


def give_gradients(optimizer: SalUnOptimizer, step: int, mesh: Any = None) -> None:
    grads = values(10 + step)
    for name, param in optimizer._named():
        grad = grads[name].to(param.dtype)
        param.grad = grad if mesh is None else spread(grad, mesh)


def assert_same(whole: SalUnOptimizer, shards: SalUnOptimizer, why: str) -> None:
    """Weights and state, to the bit."""
    for (name, left), (_, right) in zip(whole._named(), shards._named(), strict=True):
        assert same_bytes(left.detach(), right.full_tensor().detach()), (why, name)
        theirs = shards.state[right]
        for key, value in whole.state[left].items():
            if isinstance(value, Tensor):
                other = theirs[key]
                full = other.full_tensor() if isinstance(other, DTensor) else other
                assert same_bytes(value, full), (why, name, key)


# --- whole loops ----------------------------------------------------------------------------------


class Net(nn.Module):
    """Linear in its input, so that integers give integer gradients: sums are exact in any order."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.first = nn.Linear(6, 7)
        self.second = nn.Linear(7, 3)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randint(-4, 5, param.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


BATCHES, BATCH = 3, 12  # 12: the same share for 1, 2, 3 and 4 processes


def batches(rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(6)
    for _ in range(BATCHES):
        whole = torch.randint(-4, 5, (BATCH, 6), generator=generator).float()
        yield whole.chunk(world)[rank]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) * torch.tensor([1.0, -2.0, 3.0])).sum()


def reference_scores(score: str, world: int) -> Saliency:
    """In one process: |g| and g² of what each process would see, one after the other."""
    model = Net()
    saliency = Saliency(model, score)
    with saliency.measure():
        for rank in range(world):
            for x in batches(rank, world):
                loss_of(model, x).backward()
    return saliency


def measure_alike(rank: int, world: int) -> None:
    """DDP and FSDP2: scores equal those of one process, sign, |g| and g² alike."""
    for score in [score for score in SCORES if score != "per_sample"]:
        expected = reference_scores(score, world)
        for wrap in (ddp, fsdp):
            model = wrap(Net(), world)
            optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
            with optimizer.measure_saliency(score, module=model):
                for x in batches(rank, world):
                    loss_of(model, x).backward()
            assert all(param.grad is None for param in model.parameters())
            mask = optimizer.select(0.4)
            whole = mask.whole() if isinstance(mask, ShardedMask) else mask
            names = [name.removeprefix("module.") for name in whole.names]
            assert names == expected.names
            for name, own in zip(whole.names, names, strict=True):
                assert optimizer.saliency is not None
                found = optimizer.saliency[name]
                found = found.full_tensor() if isinstance(found, DTensor) else found
                assert torch.equal(found, expected[own]), (score, wrap.__name__, name)
                assert torch.equal(whole[name], expected.mask(0.4)[own])
            loss_of(model, next(batches(rank, world))).backward()  # reductions are theirs again
            optimizer.step()


def mean_without_the_module(rank: int, world: int) -> None:
    """The default score needs no module; others say that they do."""
    model = fsdp(Net(), world)
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    with optimizer.measure_saliency():
        for x in batches(rank, world):
            loss_of(model, x).backward()
    mask = optimizer.select(0.4)
    assert isinstance(mask, ShardedMask)
    assert mask.whole() == reference_scores("abs_of_sum", world).mask(0.4)
    assert "needs the module" in message(lambda: enter(optimizer.measure_saliency("sum_of_abs")))


def clip_alike(rank: int, world: int) -> None:
    """``clip_norm`` is about the whole gradient, not the blocks of one process."""
    whole = Saliency(Net())
    with whole.measure(clip_norm=1.0):
        for x in batches():
            (loss_of(whole._module, x) / world).backward()
    for knows_the_module in (False, True):
        model = fsdp(Net(), world)
        saliency = Saliency(model if knows_the_module else dict(model.named_parameters()))
        with saliency.measure(clip_norm=1.0):
            for x in batches(rank, world):
                loss_of(model, x).backward()
        for name in whole.names:
            found = saliency[name].full_tensor()
            torch.testing.assert_close(found, whole[name], rtol=1e-5, atol=1e-7)


def clip_in_buckets(rank: int, world: int) -> None:
    """DDP hands out views of buckets, which it clears before a backward() is over."""
    found = []
    for wrap in (
        lambda model: model,
        lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True),
    ):
        saliency = Saliency(wrap(Net()))
        with saliency.measure(clip_norm=1.0):
            for x in batches(rank, world):
                loss_of(saliency._module, x).backward()
        found.append([saliency[name] for name in saliency.names])
    assert all(same_bytes(a, b) for a, b in zip(*found, strict=True))


def averaged_gradients_are_refused(rank: int, world: int) -> None:
    model = fsdp(Net(), world)
    loss_of(model, next(batches(rank, world))).backward()
    said = message(Saliency(model, "sum_of_abs").accumulate)
    assert "before FSDP averages" in said
    Saliency(model).accumulate()


def nan_stops_all(rank: int, world: int) -> None:
    model = fsdp(Net(), world)
    optimizer = SalUnOptimizer(model.named_parameters(), lr=0.1)
    x = next(batches(rank, world))
    if rank == world - 1:
        x[0, 0] = float("nan")

    def measure() -> None:
        with optimizer.measure_saliency():
            loss_of(model, x).backward()

    assert "holds NaN or infinity" in message(measure)


def step_in_backward_alike(rank: int, world: int) -> None:
    """FSDP2 reduces, then each block moves; DDP would move before it averages."""
    moved = []
    for in_backward in (False, True):
        model = fsdp(Net(), world)
        optimizer = SalUnOptimizer(
            model.named_parameters(), torch.optim.AdamW, lr=0.01,
            mask=reference_scores("abs_of_sum", 1).mask(0.4),
        )  # fmt: skip
        with stepping(optimizer, in_backward):
            for x in batches(rank, world):
                loss_of(model, x).backward()
                if in_backward:
                    assert all(param.grad is None for param in model.parameters())
                optimizer.step()
                optimizer.zero_grad()
        moved.append([param.to_local().clone() for param in model.parameters()])
    assert all(same_bytes(a, b) for a, b in zip(*moved, strict=True))
    optimizer = SalUnOptimizer(ddp(Net(), world).named_parameters())
    assert "before DDP has averaged" in message(lambda: enter(optimizer.step_in_backward()))


def compile_alike(rank: int, world: int) -> None:
    """Steps on FSDP2's blocks stay outside of graphs, and have the bits of eager ones."""
    moved = []
    for compiled in (False, True):
        model = fsdp(Net(), world)
        optimizer = SalUnOptimizer(
            model.named_parameters(), torch.optim.AdamW, lr=torch.tensor(0.01),
            mask=reference_scores("abs_of_sum", 1).mask(0.4),
        )  # fmt: skip
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for x in batches(rank, world):
            loss_of(model, x).backward()
            step()
            optimizer.zero_grad()
        moved.append([param.to_local().clone() for param in model.parameters()])
    assert all(same_bytes(a, b) for a, b in zip(*moved, strict=True))
    torch._dynamo.reset()
    whole = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    assert "sharded parameters step outside of graphs" in message(whole)


@contextmanager
def stepping(optimizer: SalUnOptimizer, in_backward: bool) -> Iterator[None]:
    if in_backward:
        with optimizer.step_in_backward():
            yield
    else:
        yield


def enter(context: Any) -> None:
    with context:
        pass


def ddp(model: nn.Module, world: int) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module, world: int) -> nn.Module:
    """Two FSDP modules: one within the other."""
    mesh = mesh_of(world)
    fully_shard(model.first, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


# --- checkpoints ----------------------------------------------------------------------------------


def trained(rank: int, world: int, wrap: Any, mask: SaliencyMask | None) -> Any:
    model = wrap(Net(), world)
    torch.manual_seed(0)
    optimizer = SalUnOptimizer(
        model.named_parameters(), torch.optim.AdamW, lr=torch.tensor(0.01), mask=mask
    )
    return model, optimizer


def save_checkpoint(rank: int, world: int, folder: Path, masked: bool = True) -> dict[str, Any]:
    """After a few steps; what was saved."""
    mask = reference_scores("abs_of_sum", 1).mask(0.4) if masked else None
    model, optimizer = trained(rank, world, fsdp, mask)
    for x in batches(rank, world):
        loss_of(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()
    dcp.save(checkpoint_of(model, optimizer), checkpoint_id=folder)
    return contents(model, optimizer)


def load_checkpoint(rank: int, world: int, folder: Path, wrap: str) -> dict[str, Any]:
    """Onto this number of processes, FSDP2 or whole; what came back."""
    wrapped = {"fsdp": fsdp, "whole": lambda model, world: model}[wrap]
    model, optimizer = trained(rank, world, wrapped, None)
    state = checkpoint_of(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert optimizer.mask is None or isinstance(optimizer.mask, ShardedMask) == (wrap == "fsdp")
    loaded = contents(model, optimizer)
    loss_of(model, next(batches(rank, world))).backward()
    optimizer.step()
    mask = loaded["mask"]
    moved = 0
    for name, param in model.named_parameters():
        changed = full(param) != loaded["weights"][name]
        moved += int(changed.sum())
        assert mask is None or not bool((changed & ~mask[name]).any()), name
    assert moved
    return loaded


def contents(model: nn.Module, optimizer: SalUnOptimizer) -> dict[str, Any]:
    """All whole, on every process."""
    mask = whole_mask(optimizer.mask)
    return {
        "mask": None if mask is None else mask.to_dict(),
        "weights": {name: full(param).clone() for name, param in model.named_parameters()},
        "state": {
            f"{name}.{key}": full(value).clone()
            for name, param in model.named_parameters()
            for key, value in optimizer.state[param].items()
        },
    }


def forget_the_mask(rank: int, world: int, folder: Path) -> str:
    """A checkpoint loaded without its mask would free every weight: it is an error."""
    model, optimizer = trained(rank, world, fsdp, None)
    state = checkpoint_of(model, optimizer)
    del state["mask"]
    dcp.load(state, checkpoint_id=folder)
    return message(lambda: set_optimizer_state_dict(model, optimizer, state["optimizer"]))


def load_altered(rank: int, world: int) -> str:
    """One bit of the mask differs from what its digest says."""
    _, optimizer = trained(rank, world, fsdp, reference_scores("abs_of_sum", 1).mask(0.4))
    state = MaskState(optimizer).state_dict()
    octets = state["bits.second.weight"]
    if rank == 0:
        octets.to_local()[0, 0] ^= 1
    before = whole_mask(optimizer.mask)
    said = message(lambda: MaskState(optimizer).load_state_dict(state))
    assert whole_mask(optimizer.mask) == before
    return said


def checkpoint_of(model: nn.Module, optimizer: SalUnOptimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "mask": MaskState(optimizer),
    }


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
