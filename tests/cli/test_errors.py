"""One clear line and exit code 2 for what a user can mend."""

from __future__ import annotations

import pytest
import typer

from salun_fast.cli import app
from tests.cli.conftest import call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "wdith=3"], "did you mean 'width'"),
        (["train", "train.lrr=3"], "unknown setting 'lrr'; did you mean 'lr'"),
        (["train", "data=nothing"], "neither a known name"),
        (["train", "device=cuda:99"], "not available here"),
        (["train", "--config", "missing.yaml"], "missing.yaml does not exist"),
        (["unlearn"], "needs a trained model"),
        (["unlearn", "--from", "missing"], "not a run folder"),
        (["unlearn", "unlearn.density=0"], "needs a trained model"),
        (["mask", "info", "missing.safetensors"], "missing.safetensors"),
        (["demo", "--data", "cifar10"], "data must be one of digits, fashion-mnist"),
        (["demo", "sedes=[0]"], "did you mean 'seeds'"),
        (["demo", "seeds=[100]"], "not the tuning seed"),
        (["report", "missing"], "not a run folder"),
    ],
)
def test_user_error_is_one_line_with_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_density_is_refused_before_anything_is_written(original, tmp_path):
    result = call("unlearn", "--from", original, "unlearn.density=1.5", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "density must lie in (0, 1]" in result.output
    assert not (tmp_path / "run").exists()


def test_debug_shows_where_it_went_wrong(tmp_path):
    result = call("--debug", "report", tmp_path)
    assert isinstance(result.exception, FileNotFoundError)


def test_missing_extra_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "omegaconf", None)
    result = call("train", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert 'pip install "salun-fast[demo]"' in result.output


def test_unknown_failure_points_to_debug_and_exits_with_1(monkeypatch):
    def broken(*arguments: object) -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("salun_fast.mask.SaliencyMask.load", broken)
    result = call("mask", "info", "m.safetensors")
    assert result.exit_code == 1
    assert "out of cheese" in result.output
    assert "--debug" in result.output


def test_interrupt_says_how_to_go_on(monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("salun_fast.mask.SaliencyMask.load", interrupted)
    result = call("mask", "info", "m.safetensors")
    assert result.exit_code == 130
    assert "--resume" in result.output


def test_help_lists_every_command():
    names = set(typer.main.get_command(app).commands)
    assert names == {
        "demo", "train", "saliency", "unlearn", "evaluate", "sample", "report", "doctor", "mask",
        "patch",
    }  # fmt: skip
    output = call("--help").output
    assert all(name in output for name in names)
