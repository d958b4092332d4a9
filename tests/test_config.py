"""YAML file, overrides and the resolved configuration."""

from __future__ import annotations

import pytest

from salun_fast import config as configs
from salun_fast.config import RunConfig
from salun_fast.run import RunFolder


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 4\nwidth: 4\ntrain:\n  lr: 0.1\n  epochs: 3\n")
    loaded = configs.load(["seed=5", "train.epochs=2"], file=file, base=RunConfig(width=2, seed=1))
    assert (loaded.seed, loaded.width) == (5, 4)
    assert loaded.train == {"lr": 0.1, "epochs": 2}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wdith=3", "unknown configuration key 'wdith'; did you mean 'width'"),
        ("width=wide", "'width'.*could not be converted"),
        ("width", "form key=value, found 'width'"),
        ("=3", "form key=value"),
        ("data=[", "'data=\\[' is not valid YAML"),
    ],
)
def test_wrong_override_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        configs.load([override])


def test_wrong_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        configs.load(file=tmp_path / "no.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="not valid YAML"):
        configs.load(file=tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold key: value lines"):
        configs.load(file=tmp_path / "list.yaml")


def test_run_folder_gives_back_the_configuration_it_was_given(tmp_path):
    given = RunConfig(seed=3, forget_class=2, unlearn={"lr": 0.03, "milestones": [1, 2]})
    folder = RunFolder(tmp_path / "run")
    folder.begin("unlearn", given)
    assert folder.config() == given
    text = folder.config_file.read_text()
    assert "command: unlearn" in text
    assert "versions:" in text
    assert "torch:" in text


def test_folder_in_use_is_only_touched_to_resume(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin("train", RunConfig())
    with pytest.raises(ValueError, match="already holds a run"):
        folder.begin("train", RunConfig(seed=1))
    assert folder.config().seed == 0


def test_metrics_line_cut_off_by_a_kill_is_dropped_on_resume(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin("train", RunConfig())
    folder.log({"kind": "epoch", "epoch": 1})
    with folder.metrics_file.open("a") as file:
        file.write('{"kind": "ep')
    assert folder.metrics() == [{"kind": "epoch", "epoch": 1}]
    folder.begin("train", RunConfig(), resume=True)
    folder.log({"kind": "epoch", "epoch": 2})
    assert [line["epoch"] for line in folder.metrics()] == [1, 2]


def test_missing_package_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "omegaconf", None)
    with pytest.raises(ImportError, match=r'pip install "salun-fast\[demo\]"'):
        configs.load()
