"""The diffusion demo from made models to its report, tiny; and what the package ships."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from salun_fast import diffusion_records as records
from salun_fast.demo import ddpm, ddpm_models
from salun_fast.demo.ddpm import DDPMDemo, run_ddpm_demo
from salun_fast.demo.ddpm_models import (
    RECIPES,
    SHIPPED,
    Recipe,
    load_models,
    load_unet,
    make_models,
    pictures,
)
from salun_fast.demo.diffusion import DDPM_OWN, DDPM_UNLEARN, ddpm_demo, run_diffusion_demo
from salun_fast.diffusion.sampling import sample_classes

TINY = Recipe(
    channels=(8, 8, 8),
    forget_class=3,
    train={"steps": 2, "lr": 1e-3, "batch_size": 4},
    judge={"epochs": 1, "lr": 0.05, "batch_size": 256},
)
QUICK = {"steps": 2, "lr": 1e-3, "alpha": 1e-2, "batch_size": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of tiny models, made with the digits' recipe cut short."""
    folder = tmp_path_factory.mktemp("demo") / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "digits", TINY)  # type: ignore[arg-type]
        make_models("digits", folder, progress=False)
    return folder


@pytest.fixture
def settings(made, monkeypatch):
    monkeypatch.setitem(RECIPES, "digits", TINY)
    return DDPMDemo(
        data="digits",
        models=str(made),
        classes=(3, 5),
        unlearn=QUICK,
        forget_images=8,
        forget_samples=4,
        retained_samples=2,
        sampling_steps=2,
        workers=1,
        threads=1,
    )


def test_models_are_loaded_on_the_device_asked_for_or_it_is_refused(settings, made, tmp_path):
    found = load_models(made, pictures("digits"), "meta")
    retrained, _ = load_unet(made / "retrained", "meta")
    for model in (found.original, found.judge, retrained):
        assert {p.device.type for p in model.parameters()} == {"meta"}
    with pytest.raises(ValueError, match="device 'cuda:99' is not available here"):
        run_ddpm_demo(replace(settings, device="cuda:99"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_comparison_has_every_method_on_the_first_class_and_the_control_on_all(
    settings, tmp_path
):
    found = run_ddpm_demo(settings, tmp_path)[1:]
    methods = {
        task: {r["method"] for r in found if r["task"] == task} for task in ("class 3", "class 5")
    }
    assert methods["class 3"] == {"original", "retrain", "salun", "random_mask", "rl", "ga"}
    assert methods["class 5"] == {"original", "salun", "random_mask"}
    for record in found:
        images = records.load_samples(tmp_path / record["samples"])
        assert images.shape == (10, ddpm.SHOWN, 1, 16, 16)
        assert record["metrics"]["counts"] == {"forget": 4, "retained": 18}
        if record["method"] in ("salun", "random_mask"):
            assert record["certificate"]["holds"]
    salun, control = (
        next(r["mask"] for r in found if (r["task"], r["method"]) == ("class 3", m))
        for m in ("salun", "random_mask")
    )
    assert salun["count"] == control["count"]
    assert salun["fingerprint"] != control["fingerprint"]


def test_a_killed_comparison_goes_on_with_what_is_missing(settings, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(record, done, total):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run_ddpm_demo(settings, tmp_path, on_record=kill)
    again: list[tuple[str, str]] = []
    whole = run_ddpm_demo(
        settings, tmp_path, on_record=lambda r, *_: again.append((r["task"], r["method"]))
    )
    keys = [(r["task"], r["method"], r["seed"]) for r in whole]
    assert len(keys) == len(set(keys)) == 10  # settings, two originals, retrain, 4 + 2 runs
    assert len(again) == 6


def test_the_demo_writes_a_page_and_a_table(settings, tmp_path):
    report = run_diffusion_demo(settings, tmp_path, command="salun-fast demo ddpm")
    page = report.read_text()
    assert "data:image/png;base64," in page
    assert "data:image/gif;base64," in page
    assert "salun-fast demo ddpm" in page
    table = (tmp_path / "table.md").read_text()
    assert "SalUn" in table
    assert "Random mask" in table


def test_models_are_made_once(made, monkeypatch):
    monkeypatch.setitem(RECIPES, "digits", TINY)
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*.safetensors")}
    monkeypatch.setattr(
        ddpm_models, "train_ddpm", lambda *a, **k: pytest.fail("trained a model that is there")
    )
    make_models("digits", made, progress=False)
    unets = [p for p in before if p.parent.name == "unet"]
    assert len(unets) == 2
    assert all(p.stat().st_mtime_ns == before[p] for p in unets)


def test_the_retrained_model_never_saw_the_forgotten_class(made, monkeypatch):
    seen: list[set[int]] = []
    monkeypatch.setitem(RECIPES, "digits", TINY)
    monkeypatch.setattr(
        ddpm_models,
        "make_unet",
        lambda recipe, classes, data, folder, **k: seen.append(set(data.labels.tolist())),
    )
    make_models("digits", made, progress=False)
    assert seen == [set(range(10)), set(range(10)) - {3}]


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_shipped_models_draw_what_they_are_asked_for(name):
    folder = SHIPPED / f"ddpm-{name}"
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["forget_class"] == RECIPES[name].forget_class
    assert facts["train"] == dict(RECIPES[name].train)
    found = load_models(folder, pictures("digits"))
    labels = [label for label in range(10) for _ in range(3)]
    images = sample_classes(found.original, found.scheduler, labels, range(30), steps=12)
    with torch.no_grad():
        said = found.judge(images.float() / 127.5 - 1).argmax(dim=1)
    assert (said == torch.tensor(labels)).float().mean() > 0.7


def test_overrides_change_the_comparison_and_unknown_ones_are_refused(tmp_path):
    changed = ddpm_demo("digits", tmp_path, ["seeds=[1,2]", "unlearn.steps=7"])
    assert changed.seeds == (1, 2)
    assert changed.settings_of("salun") == {**DDPM_UNLEARN, "steps": 7}
    assert changed.settings_of("ga")["lr"] == DDPM_OWN["ga"]["lr"]
    with pytest.raises(ValueError, match="classes"):
        ddpm_demo("digits", tmp_path, ["clases=[1]"])
    with pytest.raises(ValueError, match="fashion-mnist"):
        ddpm_demo("mnist", tmp_path)
    with pytest.raises(ValueError, match="salun"):
        ddpm_demo("digits", tmp_path, ["methods=[magic]"])


def test_a_mistaken_call_leaves_the_folder_to_the_right_one(settings, tmp_path):
    with pytest.raises(ValueError, match="classes must be a class"):
        run_ddpm_demo(replace(settings, classes=(99,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_of_other_models_are_not_gone_on_with(settings, made, tmp_path):
    quick = replace(settings, classes=(5,), methods=("ga",))
    run_ddpm_demo(quick, tmp_path / "demo")
    other = tmp_path / "models"
    shutil.copytree(made, other)
    weights = other / "original" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="models_digest"):
        run_ddpm_demo(replace(quick, models=str(other)), tmp_path / "demo")


def test_the_data_cannot_be_changed_under_the_models(tmp_path):
    with pytest.raises(ValueError, match="use --data"):
        ddpm_demo("digits", tmp_path, ["data=fashion-mnist"])
