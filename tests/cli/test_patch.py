"""patch info, apply and remove, on files and diffusers folders."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salun_fast import patched_files
from salun_fast.patch import UnlearningPatch
from salun_fast.weights import load_weights, save_weights
from tests.cli.conftest import call, fine
from tests.conftest import same_bytes

OLD = {"a.weight": torch.arange(8.0).view(2, 4), "b": torch.zeros(3).half(), "c": torch.ones(2)}


def unlearned() -> dict[str, Tensor]:
    new = {name: tensor.clone() for name, tensor in OLD.items()}
    new["a.weight"][1] = -1
    new["b"][0] = -0.0
    return new


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        same_bytes(tensor, expected[name]) for name, tensor in found.items()
    )


@pytest.fixture
def patch(tmp_path) -> Path:
    path = tmp_path / "patch.safetensors"
    UnlearningPatch.between(OLD, unlearned()).save(path)
    return path


def pipeline(folder: Path) -> Path:
    """What save_pretrained leaves, as far as the command cares."""
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text(json.dumps({"sample_size": 8}))
    save_file(OLD, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "vae").mkdir()
    save_file({"v": torch.ones(1)}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(*arguments: object) -> str:
    result = call("patch", *arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    return " ".join(result.output.split())


def test_info_tells_what_changed_and_how_large_the_file_is(patch):
    output = fine("patch", "info", patch)
    size, model = patch.stat().st_size, 8 * 4 + 3 * 2 + 2 * 4
    for words in ("5 of the model's 13 (38.46 %)", "2 with a change", "a.weight", "2 × 4"):
        assert words in output
    assert f"{size:,} bytes, {100 * size / model:.2f} % of the model's {model}" in output
    assert "50.00 %" in output
    assert "33.33 %" in output


def test_a_safetensors_file_goes_there_and_back_to_the_byte(patch, tmp_path):
    old, new, back = (tmp_path / f"{n}.safetensors" for n in ("old", "new", "back"))
    save_file(OLD, old, {"format": "pt"})
    before = old.read_bytes()
    assert f"wrote {new}" in fine("patch", "apply", patch, old, new)
    assert same(load_file(new), unlearned())
    fine("patch", "remove", patch, new, back)
    assert back.read_bytes() == before == old.read_bytes()


def test_a_model_file_of_ours_keeps_its_checksum_and_loads(tmp_path):
    model, twin = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    save_weights(model, tmp_path / "old.safetensors")
    twin(torch.randn(4, 3))
    UnlearningPatch.between(model, twin).save(tmp_path / "patch.safetensors")
    names = ("patch.safetensors", "old.safetensors", "new.safetensors")
    fine("patch", "apply", *(tmp_path / name for name in names))
    load_weights(model, tmp_path / "new.safetensors")
    assert same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_torch_file_keeps_all_else_that_it_holds(patch, wrapped, tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    torch.save({"state_dict": OLD, "epoch": 7} if wrapped else OLD, old)
    fine("patch", "apply", patch, old, new)
    found = torch.load(new, weights_only=True)
    assert same(found["state_dict"] if wrapped else found, unlearned())
    assert not wrapped or found["epoch"] == 7


def test_a_pipeline_folder_is_copied_with_its_unet_changed(patch, tmp_path):
    old, new, back = (tmp_path / name for name in ("old", "new", "back"))
    before = contents(pipeline(old))
    fine("patch", "apply", patch, old, new)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert same(load_file(new / weights), unlearned())
    assert {k: v for k, v in contents(new).items() if k != weights} == {
        k: v for k, v in before.items() if k != weights
    }
    fine("patch", "remove", patch, new, back)
    assert contents(back) == before == contents(old)
    assert sorted(os.listdir(tmp_path)) == ["back", "new", "old", "patch.safetensors"]


def test_the_folder_of_a_unet_alone_will_do(patch, tmp_path):
    unet = pipeline(tmp_path / "old") / "unet"
    fine("patch", "apply", patch, unet, tmp_path / "new")
    assert same(load_file(tmp_path / "new" / "diffusion_pytorch_model.safetensors"), unlearned())


def test_a_patched_pipeline_of_diffusers_loads_with_the_unlearned_weights(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "old")
    old = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with torch.no_grad():
        unet.conv_in.weight[::2] += 1
    UnlearningPatch.between(old, unet).save(tmp_path / "patch.safetensors")
    fine("patch", "apply", *(tmp_path / name for name in ("patch.safetensors", "old", "new")))
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path / "new")
    assert same(loaded.unet.state_dict(), unet.state_dict())


def test_nothing_is_overwritten(patch, tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file(OLD, old)
    new.write_text("mine")
    assert "exists already" in refused("apply", patch, old, new)
    assert new.read_text() == "mine"
    assert "exists already" in refused("apply", patch, old, old)


@pytest.mark.parametrize("folder", [True, False])
def test_a_patch_for_another_model_writes_nothing(patch, folder, tmp_path):
    old = pipeline(tmp_path / "old") if folder else tmp_path / "old.safetensors"
    new = tmp_path / ("new" if folder else "new.safetensors")
    weights = old / "unet" / "diffusion_pytorch_model.safetensors" if folder else old
    save_file(OLD | {"b": torch.ones(3).half()}, weights)
    assert "'b' holds other weights than the original" in refused("apply", patch, old, new)
    assert "'a.weight' holds the original weights" in refused("remove", patch, old, new)
    assert sorted(os.listdir(tmp_path)) == sorted([old.name, patch.name])


def test_a_pipeline_with_several_weights_files_is_refused(patch, tmp_path):
    old = pipeline(tmp_path / "old")
    save_file(OLD, old / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    output = refused("apply", patch, old, tmp_path / "new")
    assert "the others would keep their weights" in output
    (old / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    output = refused("apply", patch, old, tmp_path / "new")
    assert "cut into several files" in output
    assert "UnlearningPatch.load(PATCH).apply_(pipeline.unet)" in output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("model", "out", "words"),
    [
        ("nothing.pt", "new.pt", "does not exist"),
        ("old.pt", "new.safetensors", "must end with '.pt'"),
        ("old.pt", "nowhere/new.pt", "folder .* is missing"),
        ("pipeline", "pipeline/new", "lies inside"),
        ("empty", "new", "holds no diffusion_pytorch_model.safetensors"),
        ("harmful.pt", "new.pt", "cannot be read as a state dict"),
        ("list.pt", "new.pt", "must hold a state dict"),
        ("cut.safetensors", "new.safetensors", "truncated or not a safetensors file"),
        ("patch.safetensors", "new.safetensors", "expected a salun-fast model file"),
    ],
)
@pytest.mark.usefixtures("patch")
def test_what_cannot_be_patched_is_refused_in_one_line(model, out, words, tmp_path):
    torch.save(OLD, tmp_path / "old.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "harmful.pt").write_bytes(pickle.dumps(print, protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    (tmp_path / "empty").mkdir()
    pipeline(tmp_path / "pipeline")
    before = contents(tmp_path)
    output = refused("apply", tmp_path / "patch.safetensors", tmp_path / model, tmp_path / out)
    assert re.search(words, output)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(patch, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(patched_files, "save_file", full)
    old = pipeline(tmp_path / "old")
    assert "disk full" in refused("apply", patch, old, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["old", "patch.safetensors"]


def test_a_damaged_patch_is_refused_in_one_line(patch):
    content = bytearray(patch.read_bytes())
    content[-1] ^= 1
    patch.write_bytes(content)
    assert "altered" in refused("info", patch)
