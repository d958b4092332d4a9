"""Records of diffusion runs hold what the report needs, as plain JSON."""

from __future__ import annotations

import json

import pytest
import torch

from salun_fast import diffusion_records as records
from salun_fast.evaluation.certificate import FreezeCertificate
from salun_fast.evaluation.frechet import FrechetResult
from salun_fast.evaluation.generated import GeneratedMetrics
from salun_fast.files import FileFormatError
from salun_fast.mask import SaliencyMask
from salun_fast.methods.diffusion import DiffusionResult, DiffusionTrainResult
from salun_fast.methods.diffusion_settings import DDPMSettings, StepSettings
from salun_fast.methods.step_loop import StepRecord

STEP = StepRecord(10, 1e-4, 2.5, {"forget": 0.5, "retain": 2.0}, None, 1.5)
BASE = {
    "model": "ddpm",
    "task": "class 1 (Bag)",
    "method": "salun",
    "seed": 3,
    "rows": ["Shirt", "Bag"],
    "forgotten": [1],
    "samples": "samples/a.safetensors",
}


def result(mask: SaliencyMask | None) -> DiffusionResult:
    certificate = None if mask is None else FreezeCertificate(3, 0, "a" * 64, "a" * 64)
    return DiffusionResult(
        unet=None, averaged=None, history=(STEP,), seconds={"train": 1.5, "total": 2.0},
        peak_memory_mb=64.0, settings=DDPMSettings(steps=10), method="salun", mask=mask,
        certificate=certificate,
    )  # fmt: skip


def test_a_run_record_is_plain_json_with_costs_mask_and_proof():
    mask = SaliencyMask.from_dict({"w": torch.tensor([True, False, True])})
    record = records.run_record(**BASE, result=result(mask), overrides={"lr": 1e-4})
    assert json.loads(json.dumps(record)) == record
    assert record["seconds"]["total"] == 2.0
    assert record["settings"]["steps"] == 10
    assert record["history"] == [STEP.as_dict()]
    assert record["mask"]["count"] == 2
    assert record["mask"]["layers"] == {"w": pytest.approx(2 / 3)}
    assert record["certificate"]["holds"]
    assert record["metrics"] is None


def test_a_method_without_mask_has_costs_and_no_proof():
    record = records.run_record(**BASE | {"method": "rl"}, result=result(None))
    assert (record["mask"], record["certificate"]) == (None, None)
    assert record["peak_memory_mb"] == 64.0


def test_a_retrained_model_has_costs_and_no_proof():
    trained = DiffusionTrainResult(None, None, (STEP,), {"total": 9.0}, 64.0, StepSettings())
    record = records.run_record(**BASE | {"method": "retrain"}, result=trained)
    assert record["seconds"] == {"total": 9.0}
    assert (record["mask"], record["certificate"]) == (None, None)


def test_what_was_not_made_here_has_no_costs():
    record = records.run_record(**BASE | {"method": "original"})
    assert not {"seconds", "settings", "history", "peak_memory_mb"} & record.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gan"}, "model must be one of ddpm, concept, found 'gan'"),
        ({"method": "ft"}, "method must be one of original, retrain, salun, .* found 'ft'"),
        ({"forgotten": [2]}, r"forgotten must hold rows 0\.\.1, found 2"),
    ],
)
def test_an_impossible_record_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        records.run_record(**BASE | changes)


def test_metrics_are_told_by_the_names_of_the_rows():
    distance = FrechetResult(2.5, "small CNN", (90, 900), False)
    found = GeneratedMetrics(
        99.0, 90.0, {0: 90.0, 1: 1.0}, distance, "small CNN", 92.0, {"forget": 50, "retained": 90}
    )
    record = records.metrics_record(found, {0: "Shirt", 1: "Bag"}, clip_score=25.5)
    assert record["per_row"] == {"Shirt": 90.0, "Bag": 1.0}
    assert record["frechet"]["label"] == "Fréchet distance, features of small CNN"
    assert record["clip_score"] == 25.5
    assert "clip_score" not in records.metrics_record(found, {0: "Shirt", 1: "Bag"})
    json.dumps(record)


def test_only_lines_of_diffusion_runs_are_taken_for_such():
    assert records.is_diffusion(records.step_record(STEP))
    assert records.is_diffusion(records.run_record(**BASE))
    assert records.is_diffusion(records.settings_record("concept", {}, {}))
    for line in ({"kind": "epoch"}, {"kind": "run", "task": "class"}, {"kind": "settings"}):
        assert not records.is_diffusion(line)


def test_samples_come_back_to_the_bit(tmp_path):
    images = torch.arange(2 * 3 * 3 * 4 * 4).view(2, 3, 3, 4, 4).to(torch.uint8)
    records.save_samples(tmp_path / "samples" / "a.safetensors", images)
    assert torch.equal(records.load_samples(tmp_path / "samples" / "a.safetensors"), images)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 1, 4, 4), torch.zeros(3, 1, 4, 4).byte()])
def test_samples_of_another_kind_are_refused_and_leave_nothing(tmp_path, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[rows, seeds, c, h, w\], found"):
        records.save_samples(tmp_path / "a.safetensors", images)
    assert list(tmp_path.iterdir()) == []


def test_altered_samples_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    records.save_samples(path, torch.zeros(1, 1, 1, 8, 8, dtype=torch.uint8))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="generated samples file was altered"):
        records.load_samples(path)
