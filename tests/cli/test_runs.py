"""train, saliency, unlearn, evaluate and report, from one run folder to the next."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from salun_fast.mask import SaliencyMask
from salun_fast.run import RunFolder
from tests.cli.conftest import call, fine


def test_training_leaves_a_whole_run_folder(original):
    assert {p.name for p in original.iterdir()} == {
        "config.yaml", "metrics.jsonl", "model.safetensors", "checkpoints", "report.html",
    }  # fmt: skip
    text = (original / "config.yaml").read_text()
    for line in ("command: train", "seed: 0", "momentum: 0.9", "torch: "):
        assert line in text
    assert [line["kind"] for line in RunFolder(original).metrics()] == ["epoch"]


def test_unlearning_leaves_mask_metrics_and_report(unlearned):
    assert {p.name for p in unlearned.iterdir()} == {
        "config.yaml", "metrics.jsonl", "mask.safetensors", "model.safetensors", "checkpoints",
        "report.html",
    }  # fmt: skip
    *epochs, before, after = RunFolder(unlearned).metrics()
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert (before["method"], after["method"]) == ("original", "salun")
    assert after["certificate"]["holds"]
    assert (
        after["mask"]["fingerprint"]
        == SaliencyMask.load(unlearned / "mask.safetensors").fingerprint
    )
    html = (unlearned / "report.html").read_text()
    assert "Forgetting class 3" in html
    assert "Freeze certificate" in html


def test_resolved_configuration_names_every_setting(unlearned):
    config = RunFolder(unlearned).config()
    assert config.unlearn["density"] == 0.5
    assert config.unlearn["epochs"] == 2
    assert config.split_seed == 0
    assert config.weights is not None


def test_frozen_weights_of_the_saved_model_equal_the_originals(original, unlearned):
    mask = SaliencyMask.load(unlearned / "mask.safetensors")
    before, after = (load_file(f / "model.safetensors") for f in (original, unlearned))
    for name in mask.names:
        frozen = ~mask[name]
        assert torch.equal(before[name][frozen], after[name][frozen])


def test_run_stopped_after_an_epoch_resumes_to_the_same_bits(
    original, unlearned, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def interrupted(self: RunFolder, record: object) -> None:
        raise KeyboardInterrupt

    arguments = ["--from", original, "unlearn.epochs=2", "forget_class=3", "--out", folder]
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", interrupted)
        stopped = call("unlearn", *arguments)
    assert stopped.exit_code == 130
    assert "--resume" in stopped.output
    assert not (folder / "model.safetensors").exists()
    stale = folder / ".model.safetensors.0123456789ab.tmp"
    stale.write_bytes(b"half of a model")
    fine("unlearn", "--resume", "--out", folder)
    assert not stale.exists()
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, unlearned))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [line["kind"] for line in RunFolder(folder).metrics()] == ["epoch"] * 2 + ["run"] * 2


def test_resuming_with_other_settings_is_refused(unlearned, tmp_path):
    folder = shutil.copytree(unlearned, tmp_path / "run")
    result = call("unlearn", "--resume", "--out", folder, "unlearn.lr=0.5")
    assert result.exit_code == 2
    assert "belongs to another run" in result.output
    fine("unlearn", "--resume", "--out", folder)  # the refused settings were not written down


def test_folder_in_use_is_not_overwritten(original, unlearned):
    before = (unlearned / "metrics.jsonl").read_bytes()
    result = call("unlearn", "--from", original, "--out", unlearned)
    assert result.exit_code == 2
    assert "already holds a run" in result.output
    assert (unlearned / "metrics.jsonl").read_bytes() == before


def test_measured_mask_can_be_used_for_unlearning(original, tmp_path):
    fine("saliency", "--from", original, "unlearn.density=0.25", "--out", tmp_path / "s")
    mask = tmp_path / "s" / "mask.safetensors"
    assert (tmp_path / "s" / "saliency.safetensors").is_file()
    fine("unlearn", "--from", original, f"mask={mask}", "unlearn.epochs=1", "--out", tmp_path / "u")
    used = SaliencyMask.load(tmp_path / "u" / "mask.safetensors")
    assert used.fingerprint == SaliencyMask.load(mask).fingerprint
    assert RunFolder(tmp_path / "u").metrics()[-1]["overrides"]["density"] == pytest.approx(
        0.25, rel=1e-3
    )


def test_saliency_gives_the_mask_that_unlearn_would_measure(original, unlearned, tmp_path):
    fine("saliency", "--from", original, "forget_class=3", "--out", tmp_path)
    ours, theirs = (SaliencyMask.load(f / "mask.safetensors") for f in (tmp_path, unlearned))
    assert ours == theirs


def test_evaluate_prints_metrics_and_gaps(unlearned, retrained):
    output = fine("evaluate", unlearned, "--retrain", retrained)
    for word in ("UA", "MIA", "Avg. Gap", "0.00", "MIA used"):
        assert word in output


def test_gaps_between_different_splits_are_refused(unlearned, original, tmp_path):
    fine("unlearn", "--from", original, "method=ga", "unlearn.epochs=1", "--out", tmp_path / "ga")
    result = call("evaluate", unlearned, "--retrain", tmp_path / "ga")
    assert result.exit_code == 2
    assert "forget different images" in result.output


def test_report_puts_runs_side_by_side(unlearned, retrained, tmp_path):
    page, table = tmp_path / "both.html", tmp_path / "both.md"
    output = fine("report", unlearned, retrained, "--out", page, "--markdown", table)
    assert "Retrain" in output
    assert "Distance to Retrain" in page.read_text()
    assert "| SalUn |" in table.read_text()


def test_runs_of_one_seed_on_different_splits_are_not_compared(original, tmp_path):
    for method, split in (("ga", 0), ("retrain", 5)):
        fine(
            "unlearn", "--from", original, f"method={method}", "unlearn.epochs=1",
            f"split_seed={split}", "--out", tmp_path / method,
        )  # fmt: skip
    result = call("report", tmp_path / "ga", tmp_path / "retrain")
    assert result.exit_code == 2
    assert "split_seed 5, a run before it those of 0" in result.output


def test_a_changed_preset_leaves_nothing_of_the_old_one(original, unlearned, tmp_path):
    file = unlearned / "config.yaml"
    fine(
        "unlearn", "--from", original, "--config", file, "preset=reference", "unlearn.epochs=1",
        "--out", tmp_path / "u",
    )  # fmt: skip
    found = RunFolder(tmp_path / "u").config()
    told = {name: found.unlearn[name] for name in ("weighting", "true_label_included")}
    assert (found.preset, told) == (
        "reference",
        {"weighting": "batch", "true_label_included": True},
    )


def test_torchvision_models_need_no_width(tmp_path):
    pytest.importorskip("torchvision")
    fine("train", "model=mobilenet_v3_small", "channels=3", "train.epochs=1", "--out", tmp_path)
    assert RunFolder(tmp_path).config().width is None
    assert "mobilenet_v3_small · seed 0" in (tmp_path / "report.html").read_text()


def test_report_says_on_how_many_images_the_attack_was_fitted(unlearned):
    assert re.search(r"fitted on \d+ retain images", (unlearned / "report.html").read_text())


def test_report_is_rebuilt_from_the_folder(unlearned):
    before = (unlearned / "report.html").read_text()
    (unlearned / "report.html").unlink()
    fine("report", unlearned)
    assert (unlearned / "report.html").read_text() == before


def test_same_run_twice_is_refused(unlearned):
    result = call("report", unlearned, unlearned)
    assert result.exit_code == 2
    assert "second run of method salun with seed 0" in result.output


def test_metrics_are_json_lines(unlearned):
    lines = (unlearned / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
