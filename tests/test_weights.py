"""Weights files of ours and of others."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from salun_fast.weights import load_weights, save_weights


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _equal(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("form", ["ours", "safetensors", "pt", "wrapped", "prefixed"])
def test_weights_come_back(form, tmp_path):
    model, twin = _model(), _model()
    path = tmp_path / ("w.safetensors" if form in ("ours", "safetensors") else "w.pt")
    state = model.state_dict()
    if form == "ours":
        save_weights(model, path)
    elif form == "safetensors":
        save_file(state, path)
    elif form == "pt":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    load_weights(twin, path)
    assert _equal(model, twin)


class _Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = _model()


@pytest.mark.parametrize("mark", [b"format_version", b"sha256"])
def test_a_file_of_ours_with_an_altered_mark_is_still_checked(mark, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(_model(), path)
    path.write_bytes(path.read_bytes().replace(mark, mark[:-1] + b"_", 1))
    with pytest.raises(ValueError, match=r"was altered: its checksum does not fit"):
        load_weights(_model(), path)


@pytest.mark.parametrize("bare", [True, False])
def test_a11_a_model_with_a_prefix_of_its_own_takes_bare_and_prefixed_names(bare, tmp_path):
    model, twin = _Wrapper(), _Wrapper()
    save_weights(model.module if bare else model, tmp_path / "w.safetensors")
    load_weights(twin, tmp_path / "w.safetensors")
    assert _equal(model, twin)


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_weights(_model(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit the model: size mismatch for 0.weight"):
        load_weights(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), tmp_path / "w.safetensors")


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(_model(), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        load_weights(_model(), path)
    path.write_bytes(content[:40])
    with pytest.raises(ValueError, match="truncated"):
        load_weights(_model(), path)


class _Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_code_of_a_pickle_is_executed(tmp_path, capsys):
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(ValueError, match="cannot be read as a state dict"):
        load_weights(_model(), path)
    assert "executed" not in capsys.readouterr().out
