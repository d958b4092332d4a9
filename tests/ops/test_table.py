"""What holds for every op of the table: opcheck, torch.compile, kernels, fallback, variants."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from salun_fast import _load, bits, ops
from tests.conftest import clones, same_bytes

OPS = torch.ops.salun_fast


def _tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    flat = [torch.randn(n, generator=generator) for n in (40, 0, 33)]
    image = torch.randn(2, 3, 4, 5, generator=generator)
    return [*flat, image.contiguous(memory_format=torch.channels_last)]


def _step_arguments(states: int, compact: bool) -> tuple:
    params = _tensors(1)
    masks = [bits.to_memory_order(bits.pack(t > 0), t) for t in params]
    moments = [[torch.zeros_like(t) for t in params] for _ in range(states)]
    ranks = []
    if compact:
        ranks = [bits.ranks(words, t.numel()) for words, t in zip(masks, params, strict=True)]
        moments = [[torch.zeros(bits.count(words)) for words in masks] for _ in moments]
    return params, _tensors(2), *moments, [torch.tensor(0.0) for _ in params], masks, [], ranks


def _arguments(name: str, compact: bool = False) -> tuple:
    """Valid arguments of each op, as registered."""
    lr = torch.tensor(0.1, dtype=torch.float64)
    return {
        "accumulate_": lambda: (_tensors(1), _tensors(2), 1, True),
        "select": lambda: (_tensors(1), 50, True, False),
        "select_histogram": lambda: (_tensors(1), 0, 0, True),
        "select_pack": lambda: (_tensors(1), 1 << 29, 3, True),
        "masked_sgd_": lambda: (
            *_step_arguments(1, compact), lr, 0.9, 0.1, 0.01, False, False, None, torch.tensor(0.0),
            [], None,
        ),
        "masked_adam_": lambda: (
            *_step_arguments(3, compact), lr, 0.9, 0.99, 1e-8, 0.01, True, False, torch.tensor(2.0),
            None, [], None,
        ),
        "soft_threshold_": lambda: (_tensors(1), _tensors(2), 50),
        "per_sample_": lambda: (
            torch.zeros(4, 2, 3, 3), torch.ones(2, 4, 3, 2), torch.arange(80.0).view(2, 2, 5, 4),
            [2, 2], [1, 1], [1, 1], 1, 0.5,
        ),
    }[name]()  # fmt: skip


@pytest.mark.cpu_only
def test_every_op_of_the_table_is_exercised_below_and_has_a_kernel():
    assert _load.status().native, _load.status().reason
    for name in ops.TABLE:
        assert _arguments(name)
        qualified = f"salun_fast::{name}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CPU")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            qualified, "CompositeExplicitAutograd"
        )


@pytest.mark.parametrize("name", ops.TABLE)
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name).default, _arguments(name))


@pytest.mark.parametrize("name", ["masked_sgd_", "masked_adam_"])
def test_opcheck_with_compact_state(name):
    torch.library.opcheck(getattr(OPS, name).default, _arguments(name, compact=True))


def _flat(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for item in result for t in _flat(item)] if isinstance(result, (list, tuple)) else []


@pytest.mark.parametrize("name", ops.TABLE)
def test_compiled_with_fullgraph_equals_eager(name):
    torch._dynamo.reset()
    op = getattr(OPS, name).default
    eager, compiled = _arguments(name), _arguments(name)
    results = op(*eager), torch.compile(lambda *a: op(*a), fullgraph=True)(*compiled)
    for mine, theirs in zip(
        _flat([results[0], *eager]), _flat([results[1], *compiled]), strict=True
    ):
        assert same_bytes(mine, theirs)


def test_wrappers_compile_without_graph_breaks():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def everything(scores, grads, params, steps, lr):
        ops.accumulate_(scores, grads, rule="abs")
        masks, threshold = ops.select(scores, 20)
        ops.masked_sgd_(params, grads, [], steps, masks, lr=lr)
        return masks, threshold

    def inputs():
        return [torch.zeros(40)], [torch.arange(40.0)], [torch.ones(40)], [torch.tensor(0.0)]

    first, again = inputs(), inputs()
    masks, threshold = everything(*first, torch.tensor(0.1))
    assert threshold == 20
    assert bits.unpack(masks[0], (40,)).nonzero().flatten().tolist() == list(range(20, 40))
    with torch._dynamo.config.patch(error_on_recompile=True):
        everything(*again, torch.tensor(0.2))
    assert torch.equal(again[2][0][:20], torch.ones(20))
    assert again[2][0][30] == 1 - 0.2 * 30


SNIPPET = """
import hashlib, json, torch
from tests.ops.steps import CASES, compact, gradients, problem
from tests.conftest import awkward_tensors
from salun_fast import _load, ops
torch.set_num_threads({threads})
digest = hashlib.sha256()
def add(tensors):
    for t in tensors:
        digest.update(t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
for dtype in ops.FLOATS:
    for case in CASES.values():
        p = problem(dtype, case.states)
        for g in gradients(dtype, 2):
            case.op(p, g)
        add(p.tensors())
        p = compact(problem(dtype, case.states))
        case.op(p, gradients(dtype, 1)[0])
        add(p.tensors())
    scores = awkward_tensors(torch.float32, 1)
    for rule in ops.RULES:
        ops.accumulate_(scores, awkward_tensors(dtype, 2), rule=rule)
    add(scores)
    add(ops.select(awkward_tensors(dtype, 3), 1000)[0])
    # Whole numbers: their sums are exact, in whatever order a kernel takes them.
    whole = [torch.arange(n).remainder(7).to(dtype) for n in (2 * 40 * 49, 2 * 3 * 49)]
    image = torch.zeros(40, 3, 3, 3)
    ops.per_sample_(image, whole[0].view(2, 40, 7, 7), whole[1].view(2, 3, 7, 7), padding=(1, 1))
    add([image])
    moved = awkward_tensors(dtype, 4)
    ops.soft_threshold_(moved, awkward_tensors(dtype, 5), 1000)
    add(moved)
big = torch.randn(2_200_000, generator=torch.Generator().manual_seed(0))
add(ops.select([big, -big.bfloat16().float()], 777_777)[0])
print(json.dumps([_load.status().isa, digest.hexdigest()]))
"""


def _run(snippet: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", snippet],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.cpu_only
def test_every_instruction_set_and_thread_count_gives_the_same_bits():
    digests = {}
    for isa in _load.status().available_isas:
        for threads in (1, 2):
            done = _run(SNIPPET.format(threads=threads), SALUN_FAST_ISA=isa)
            assert done.returncode == 0, done.stderr
            active, digest = json.loads(done.stdout)
            assert active == isa
            digests[isa, threads] = digest
    assert len(set(digests.values())) == 1, digests


@pytest.mark.cpu_only
def test_the_reference_gives_the_bits_of_the_kernels_with_one_warning():
    native = json.loads(_run(SNIPPET.format(threads=2)).stdout)
    done = _run(SNIPPET.format(threads=2), SALUN_FAST_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [None, native[1]]
    assert done.stderr.count("ReferenceFallbackWarning") == 1
    assert "SALUN_FAST_NATIVE=0 is set" in done.stderr


@pytest.mark.cpu_only
def test_an_instruction_set_that_cannot_run_here_is_refused():
    done = _run("import salun_fast", SALUN_FAST_ISA="avx1024")
    assert done.returncode != 0
    assert "SALUN_FAST_ISA=avx1024 cannot run here: expected one of baseline" in done.stderr


@pytest.mark.cpu_only
def test_tensors_on_a_device_without_a_kernel_never_reach_the_reference_unannounced():
    done = _run(
        "import warnings; warnings.simplefilter('error');"
        "from salun_fast import _load; _load.announce_reference('xpu')"
    )
    assert "no kernel for 'xpu' is built in" in done.stderr


@pytest.mark.cpu_only
def test_importing_salun_fast_is_light():
    done = _run(
        "import sys, torch, salun_fast;"
        "heavy = {'sklearn', 'torchvision', 'matplotlib', 'omegaconf', 'jinja2', 'typer', 'rich'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.cpu_only
def test_fakes_have_the_shapes_of_the_results():
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in _tensors(1)]
        masks, threshold = OPS.select(fake, 50, True, False)
        assert [m.numel() for m in masks] == [2, 0, 2, 4]
        assert threshold.shape == ()
        assert OPS.select_histogram(fake, 0, 0, True).shape == (2048,)


def test_wrappers_leave_their_inputs_lists_alone():
    scores, grads = _tensors(1), _tensors(2)
    lists = list(scores), list(grads)
    before = clones(grads)
    ops.accumulate_(*lists)
    assert all(a is b for a, b in zip(lists[0], scores, strict=True))
    assert all(same_bytes(a, b) for a, b in zip(grads, before, strict=True))
