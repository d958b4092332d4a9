"""torch.distributed.checkpoint: model, optimizer and mask, onto any number of processes."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.conftest import same_bytes
from tests.distributed import jobs
from tests.processes import run_ranks


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of two processes, and what they saved."""
    folder = tmp_path_factory.mktemp("checkpoint")
    found = run_ranks(jobs.save_checkpoint, 2, tmp_path_factory.mktemp("ranks"), folder)
    return folder, found[0]


@pytest.mark.parametrize(
    ("world", "wrap"), [(1, "whole"), (1, "fsdp"), (2, "fsdp"), (3, "fsdp"), (4, "fsdp")]
)
def test_two_processes_save_and_any_number_loads(saved, world, wrap, tmp_path):
    folder, expected = saved
    for loaded in run_ranks(jobs.load_checkpoint, world, tmp_path, folder, wrap):
        assert_same(loaded, expected)


def test_a_checkpoint_without_a_mask_frees_every_weight(tmp_path):
    folder = tmp_path / "checkpoint"
    (expected, _) = run_ranks(jobs.save_checkpoint, 2, tmp_path, folder, False)
    (loaded,) = run_ranks(jobs.load_checkpoint, 1, tmp_path, folder, "whole")
    assert expected["mask"] is None
    assert_same(loaded, expected)


def test_loading_without_the_mask_is_refused(saved, tmp_path):
    for said in run_ranks(jobs.forget_the_mask, 2, tmp_path, saved[0]):
        assert "the checkpoint was written under mask" in said
        assert "MaskState" in said


def test_an_altered_mask_is_refused_and_the_present_one_stays(tmp_path):
    for said in run_ranks(jobs.load_altered, 2, tmp_path):
        assert "the mask of this checkpoint was altered" in said


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[key])
        elif isinstance(value, Tensor):
            assert same_bytes(value, right[key]), key
        else:
            assert value == right[key], key
