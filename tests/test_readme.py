"""The README's Python runs as it stands, and every file it links to is there."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from salun_fast import SaliencyMask
from tests.diffusion.tiny import class_unet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )
    images, labels = torch.randn(60, 1, 8, 8), torch.arange(60) % 10
    forget, retain = (images[:20], labels[:20]), (images[20:], labels[20:])
    names = {
        "torch": torch,
        "model": model,
        "loss_fn": nn.functional.cross_entropy,
        "forget": forget,
        "retain": retain,
        "test": retain,
        "forget_loader": DataLoader(TensorDataset(*forget), batch_size=10),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=20),
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    exec(blocks[0], names)
    mask = names["optimizer"].mask
    assert mask.count == mask.numel // 2
    for name, parameter in model.named_parameters():
        frozen = ~mask[name]
        assert torch.equal(parameter.detach()[frozen], before[name][frozen])
    exec(blocks[1], names)
    assert SaliencyMask.load(tmp_path / "mask.safetensors").density <= 0.3
    assert "0" in capsys.readouterr().out


def test_the_code_for_diffusion_models_runs_as_printed_on_a_tiny_one(tmp_path, monkeypatch):
    from diffusers import DDPMScheduler

    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[2]
    images = torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8)
    unet = class_unet()
    before = copy.deepcopy(unet)
    names = {
        "unet": unet,
        "scheduler": DDPMScheduler(),
        "forget_images": (images[:4], torch.ones(4, dtype=torch.int64)),
        "retain_images": (images[4:], torch.tensor([0, 2] * 4)),
    }
    exec(block.replace("steps=120", "steps=1, batch_size=2, progress=False"), names)
    assert names["patch"].count > 0
    for old, now in zip(before.parameters(), unet.parameters(), strict=True):
        assert torch.equal(old, now)


def test_every_linked_file_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_make_target_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert f"\n{target}:" in makefile, target
