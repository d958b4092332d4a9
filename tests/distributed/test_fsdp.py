"""1, 2, 3 and 4 gloo processes: one mask, and the steps of one process."""

from __future__ import annotations

import pytest

from tests.distributed import jobs
from tests.processes import run_ranks


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_sharded_scores_select_the_bits_of_one_process(world, tmp_path):
    run_ranks(jobs.select_alike, world, tmp_path, tmp_path)


def test_weights_that_two_processes_hold_count_once(tmp_path):
    run_ranks(jobs.select_among_copies, 4, tmp_path)


@pytest.mark.parametrize("world", [2, 3])
def test_a_sharded_step_equals_the_step_of_one_process(world, tmp_path):
    run_ranks(jobs.step_alike, world, tmp_path)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ddp_and_fsdp2_measure_what_one_process_measures(world, tmp_path):
    run_ranks(jobs.measure_alike, world, tmp_path)


def test_masters_and_random_bits_of_shards_are_those_of_one_process(tmp_path):
    run_ranks(jobs.round_alike, 3, tmp_path)


JOBS = [
    jobs.refuse_alike,
    jobs.mean_without_the_module,
    jobs.clip_alike,
    jobs.clip_in_buckets,
    jobs.averaged_gradients_are_refused,
    jobs.nan_stops_all,
    jobs.step_in_backward_alike,
    jobs.compile_alike,
    jobs.compact_alike,
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_two_processes(job, tmp_path):
    run_ranks(job, 2, tmp_path)
