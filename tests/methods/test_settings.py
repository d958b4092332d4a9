"""Presets and overrides."""

import pytest

from salun_fast.methods import METHODS, PRESETS, ClassifierSettings, TrainSettings
from salun_fast.methods.settings import override, resolve


def test_presets_differ_exactly_where_paper_and_code_do():
    paper, reference = vars(PRESETS["paper"]), vars(PRESETS["reference"])
    different = {name for name in paper if paper[name] != reference[name]}
    assert different == {"true_label_included", "weighting", "soft_anchor"}
    assert (paper["true_label_included"], reference["true_label_included"]) == (False, True)
    assert (paper["weighting"], reference["weighting"]) == ("sample", "batch")
    assert (paper["soft_anchor"], reference["soft_anchor"]) == ("original", "epoch")


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_settings_under_every_preset(method, preset):
    settings = resolve(method, preset, {})
    assert isinstance(settings, ClassifierSettings)
    assert settings.momentum == 0.9
    assert settings.weight_decay == 5e-4
    assert settings.batch_size == 256


def test_salun_defaults_are_the_papers():
    settings = resolve("salun", "paper", {})
    assert (settings.lr, settings.epochs, settings.density) == (0.013, 10, 0.5)
    assert (TrainSettings().lr, TrainSettings().epochs) == (0.1, 182)
    assert TrainSettings().milestones == (91, 136)


def test_overrides_win_and_lists_from_yaml_are_taken():
    settings = resolve("ga", "paper", {"epochs": 3, "milestones": [1, 2]})
    assert (settings.epochs, settings.milestones, settings.lr) == (3, (1, 2), 1e-4)


def test_unknown_setting_lists_the_known_ones():
    with pytest.raises(
        TypeError, match=r"unknown setting 'lrr'; did you mean 'lr'\? known: epochs"
    ):
        resolve("salun", "paper", {"lrr": 1})


def test_training_knows_no_density():
    with pytest.raises(TypeError, match="unknown setting 'density'"):
        override(TrainSettings(), {"density": 0.5})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("density", 0.0, r"density must lie in \(0, 1\]"),
        ("density", 1.5, r"density must lie in \(0, 1\]"),
        ("density", float("nan"), r"density must lie in \(0, 1\]"),
        ("lr", 0.0, "lr must be greater than 0"),
        ("epochs", 0, "epochs must be at least 1"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("momentum", -0.1, "momentum must be at least 0"),
        ("readout_images", -1, "readout_images must be at least 0"),
        ("order", "shuffled", "order must be one of sequential, mixed, found 'shuffled'"),
        ("score", "magnitude", "score must be one of"),
        ("weighting", "none", "weighting must be one of batch, sample"),
        ("soft_anchor", "step", "soft_anchor must be one of"),
        ("precision", "fp16", "precision must be one of fp32, bf16"),
        ("augment", "mixup", "augment must be one of"),
        ("schedule", "step", "schedule must be one of"),
    ],
)
def test_impossible_values_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        resolve("salun", "paper", {name: value})


def test_unknown_methods_and_presets_are_named():
    with pytest.raises(ValueError, match=r"method must be one of salun, .* found 'sulan'"):
        resolve("sulan", "paper", {})
    with pytest.raises(ValueError, match=r"preset must be one of paper, reference, found 'mine'"):
        resolve("salun", "mine", {})
