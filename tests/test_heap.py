"""Freed memory stays with the process for as long as was asked, and no longer."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
import torch

from salun_fast import _heap
from salun_fast._heap import kept_memory
from salun_fast.methods import train_classifier, unlearn_classifier
from tests.methods.tiny import TinyNet, blobs

CPU = torch.device("cpu")
BLOCK = 160 * 2**20
glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def left_behind(size: int = BLOCK) -> int:
    """Bytes still resident after a block was made and freed, below one that lives on."""
    before = resident()
    block = torch.ones(size, dtype=torch.uint8)
    above = torch.ones(BLOCK // 4, dtype=torch.uint8)
    assert resident() - before > size
    del block
    return resident() - before - above.numel()


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """In a process of its own: this one may have freed blocks at hand, which would be taken."""

    @wraps(test)
    def run(**given: object) -> None:
        call = f"from tests import test_heap; test_heap.{test.__name__}.__wrapped__(**{given!r})"
        subprocess.run([sys.executable, "-c", call], check=True, cwd=Path(__file__).parents[1])

    return run


@glibc
@alone
def test_freed_memory_stays_within_and_goes_back_afterwards():
    before = resident()
    assert left_behind() < BLOCK // 2
    with kept_memory(True, CPU):
        assert left_behind() > BLOCK // 2
    assert resident() - before < BLOCK // 2
    # One that no hole of the old heap can hold: what is made in such a hole stays when it is freed.
    assert left_behind(2 * BLOCK) < BLOCK // 2


@glibc
@alone
def test_freed_memory_goes_back_after_an_error_too():
    with pytest.raises(KeyError), kept_memory(True, CPU):
        raise KeyError
    assert left_behind() < BLOCK // 2


@glibc
@pytest.mark.parametrize(("kept", "device"), [(False, "cpu"), (True, "cuda")])
@alone
def test_nothing_is_kept_unasked_or_for_a_gpu(kept, device):
    with kept_memory(kept, torch.device(device)):
        assert left_behind() < BLOCK // 2


@glibc
@alone
def test_training_and_unlearning_keep_memory_where_their_settings_say_so():
    found = []
    quick = {"epochs": 1, "progress": False, "on_epoch": lambda _: found.append(left_behind())}
    for keep in (False, True):
        train_classifier(TinyNet(), blobs(8, seed=1), keep_memory=keep, **quick)
        unlearn_classifier(TinyNet(), blobs(8, seed=1), blobs(8, seed=2), keep_memory=keep, **quick)
    assert [size > BLOCK // 2 for size in found] == [False, False, True, True]


def test_another_malloc_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(_heap.sys, "platform", "darwin")
    with (
        pytest.raises(ValueError, match=r"keep_memory needs .* found none on darwin: leave it out"),
        kept_memory(True, CPU),
    ):
        pass
    with kept_memory(False, CPU):
        pass
