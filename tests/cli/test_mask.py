"""mask info, diff, import and export."""

from __future__ import annotations

import pytest
import torch

from salun_fast.mask import SaliencyMask
from tests.cli.conftest import call, fine


@pytest.fixture
def pair(tmp_path):
    first = {"a.weight": torch.tensor([[1, 1], [0, 0]]).bool(), "b": torch.tensor([True])}
    second = {"a.weight": torch.tensor([[1, 0], [0, 1]]).bool(), "b": torch.tensor([True])}
    paths = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for bits, path in zip((first, second), paths, strict=True):
        SaliencyMask.from_dict(bits).save(path)
    return paths


def test_info_prints_density_parameters_and_fingerprint(pair):
    output = fine("mask", "info", pair[0])
    for word in ("0.600000 (3 of 5", SaliencyMask.load(pair[0]).fingerprint, "a.weight", "2 × 2"):
        assert word in output
    assert "50.00 %" in output


def test_diff_counts_the_overlap(pair):
    output = fine("mask", "diff", *pair)
    assert "0.500000" in output  # 2 shared of 4 in either
    assert "same bits           no" in output
    assert "same bits           yes" in fine("mask", "diff", pair[0], pair[0])


def test_export_and_import_lose_nothing(pair, tmp_path):
    exported, back = tmp_path / "mask.pt", tmp_path / "back.safetensors"
    fine("mask", "export", pair[0], exported)
    content = torch.load(exported, weights_only=True)
    assert content["a.weight"].dtype == torch.int64
    fine("mask", "import", exported, back)
    assert SaliencyMask.load(back).fingerprint == SaliencyMask.load(pair[0]).fingerprint


def test_damaged_mask_is_refused_in_one_line(pair):
    content = bytearray(pair[0].read_bytes())
    content[-1] ^= 1
    pair[0].write_bytes(content)
    result = call("mask", "info", pair[0])
    assert result.exit_code == 2
    assert "altered" in result.output
