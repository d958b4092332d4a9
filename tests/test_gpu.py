"""Which GPUs the compiled kernels reach, and the trial step of the doctor."""

from __future__ import annotations

import pytest
import torch

from salun_fast import gpu

DEFAULT = "80-real 90"


@pytest.mark.parametrize(
    ("architectures", "capability", "how"),
    [
        (DEFAULT, (8, 0), "machine code for sm_80"),
        (DEFAULT, (8, 9), "machine code for sm_80"),
        (DEFAULT, (9, 0), "machine code for sm_90"),
        (DEFAULT, (12, 0), "PTX of sm_90, compiled by the driver at first use"),
        (DEFAULT, (7, 5), ""),
        ("86-real", (8, 0), ""),
        ("80-real;86-real", (8, 9), "machine code for sm_86"),
        ("70-virtual", (7, 0), "PTX of sm_70, compiled by the driver at first use"),
        ("90a", (9, 0), "machine code for sm_90"),
        ("90a", (10, 0), ""),
        ("100f-real", (10, 3), "machine code for sm_100"),
        ("100f", (12, 0), ""),
        ("", (9, 0), ""),
        ("native", (9, 0), ""),
    ],
)
def test_which_code_a_gpu_runs(architectures, capability, how):
    assert gpu.coverage(architectures, capability) == how


def test_the_trial_step_tells_right_from_wrong(monkeypatch):
    assert gpu.trial(torch.device("cpu")) == ""
    monkeypatch.setattr(gpu.ops, "masked_sgd_", lambda params, *rest, **named: params[0].zero_())
    assert gpu.trial(torch.device("cpu")) == "it gave [0.0] and [0.0]"


def test_the_trial_step_reports_what_torch_raises_in_one_line(monkeypatch):
    def fail(*lists, **options):
        raise RuntimeError("no kernel image is available\nCompile with ...")

    monkeypatch.setattr(gpu.ops, "masked_sgd_", fail)
    assert gpu.trial(torch.device("cpu")) == "no kernel image is available"


def test_gpus_are_listed_exactly_where_torch_can_use_them():
    assert len(gpu.usable()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for found in gpu.usable():
        assert gpu.trial(torch.device("cuda", found.index)) == ""


def test_the_driver_is_found_wherever_a_gpu_is_usable():
    version = gpu.driver()
    assert version is None or version >= (11, 0)
    assert version or not torch.cuda.is_available()
