"""The benchmark at Stable Diffusion's size counts right and runs, on a small network."""

from __future__ import annotations

import dataclasses
import gc
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks.sd_scale import __main__ as command
from benchmarks.sd_scale import cost, ours, theirs
from benchmarks.sd_scale.meter import Measured, Scale
from benchmarks.sd_scale.unet import (
    SD1,
    SD1_TENSORS,
    SD1_WEIGHTS,
    Settings,
    guided_loss,
    guided_loss_of_two_calls,
    random_batch,
    random_unet,
    shapes_of,
)
from salun_fast import Saliency

TINY = SD1 | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SETTINGS = Settings(
    TINY, latents=8, batch=1, threads=1, reference_weights=100_000, ceiling_weights=10_000
)
PHASES = ["saliency", "mask", "save", "load", "batch", "first step", "step"]


@pytest.fixture(autouse=True, scope="module")
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    gc.collect()


def test_the_configuration_is_that_of_stable_diffusion():
    shapes = shapes_of(SD1)
    assert sum(shape.numel() for shape in shapes.values()) == SD1_WEIGHTS == 859_520_964
    assert len(shapes) == SD1_TENSORS == 686


class Run(NamedTuple):
    text: str
    parts: dict[object, Measured]


@pytest.fixture(scope="module")
def run() -> Run:
    """All parts, in this process."""
    parts: dict[object, Measured] = {}

    def here(part: command.Part, settings: Settings) -> Measured:
        parts[part] = part(settings)
        return parts[part]

    return Run(command.measure(SETTINGS, shapes_of(TINY), "the command", here), parts)


def check_ours(found: Measured) -> None:
    assert [row.phase for row in found.rows] == PHASES
    assert all(row.seconds > 0 and row.peak > found.libraries / 2 for row in found.rows)
    assert {row.phase for row in found.rows if row.floor} == {"mask", "step"}
    assert all(row.measured_at is None for row in found.rows)


def test_our_phases_give_a_row_each(run):
    check_ours(run.parts[ours.run])


def test_our_phases_run_in_half_precision():
    check_ours(ours.run(dataclasses.replace(SETTINGS, dtype="bfloat16")))


def test_the_references_phases_say_on_how_many_weights_they_were_measured(run):
    rows = [row for p in (theirs.saliency, theirs.masks, theirs.steps) for row in run.parts[p].rows]
    assert [row.phase for row in rows] == [phase for phase in PHASES if phase != "batch"]
    part = theirs.first_tensors(shapes_of(TINY), SETTINGS.reference_weights)
    weights = sum(shape.numel() for shape in part.values())
    assert weights <= SETTINGS.reference_weights
    assert [row.measured_at for row in rows] == [None, *[weights] * 5]


def test_both_ways_measure_the_same_loss():
    unet, batch = random_unet(SETTINGS), random_batch(SETTINGS, seed=3)
    joined, apart = guided_loss(unet, batch), guided_loss_of_two_calls(unet, batch)
    assert joined.isfinite()
    torch.testing.assert_close(joined, apart)


def test_both_ways_select_the_same_weights():
    sums = {"first": torch.randn(7, 5), "second": torch.randn(40)}
    exact = Saliency.from_dict(sums).mask(0.5).to_dict()
    sorted_twice = theirs.double_argsort({name: s.clone() for name, s in sums.items()}, 0.5)
    for name, mask in sorted_twice.items():
        assert mask.dtype == torch.int64
        assert torch.equal(mask.bool(), exact[name])


def test_the_references_bytes_are_those_counted_by_hand():
    counted = {phase: bytes_.held for phase, bytes_ in cost.reference(1_000).items()}
    assert counted == {
        "saliency": 4_000 + 4_000 + 4_000,  # weights, gradients, sums
        "mask": 4_000 + 4_000 + 8_000 + 8_000 + 8_000,  # sums, vector, order, ranks, masks
        "save": 8_000,
        "load": 8_000,
        "batch": 4_000 + 4_000 + 8_000,  # weights, gradients, masks
        "first step": 4_000 + 4_000 + 8_000 + 4_000 + 4_000,  # and two moments
        "step": 4_000 + 4_000 + 8_000 + 4_000 + 4_000,
    }
    assert 27.4e9 < cost.reference(SD1_WEIGHTS)["mask"].held < 27.6e9


def test_our_bytes_are_those_counted_by_hand():
    shapes = {"matrix": (10, 10), "bias": (33,)}
    counted = cost.ours(shapes, torch.float32)
    words = 4 * 4 + 4 * 2  # 100 and 33 bits in words of 32
    assert cost.mask_bytes(shapes) == words
    assert counted["saliency"].held == 133 * 4 + 133 * 4 + 100 * 4  # one gradient, the largest
    assert counted["mask"] == (133 * 8 + words, 133 * 8 + words)
    assert counted["step"] == (133 * 16 + words, 133 * 28 + words)
    halved = cost.ours(shapes, torch.bfloat16)
    assert halved["step"].held == 133 * (2 + 2 + 4 + 4) + words


def test_scaling_is_linear_and_that_of_sorting_n_log_n():
    assert Scale(100, 10_000).linear == 100
    assert Scale(100, 10_000).sorting == pytest.approx(200)


def test_the_table_is_written_with_what_was_scaled_marked(run):
    text = run.text
    assert text.startswith("# SalUn at the size of Stable Diffusion\n\n`the command`")
    for word in ("exact mask", "masked Adam step", "next batch", "torch: ", "cores: ", "within"):
        assert word in text, word
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + len(PHASES)
    assert "~" not in table[1]  # the reference's saliency ran in full
    assert table[2].count("~") == 2


def test_too_little_memory_is_said_before_anything_is_measured():
    shapes = shapes_of(SD1)
    settings = Settings(SD1)
    assert command.too_little_memory(settings, shapes, 20e9) == ""
    problem = command.too_little_memory(settings, shapes, 8e9)
    assert "salun-fast's step needs 15.9 GB" in problem
    assert "found 8.0 free" in problem
    assert "--dtype bfloat16" in problem
