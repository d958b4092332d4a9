"""Checkpoints of diffusion runs: killed at any moment, a run goes on as if nothing had been."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from salun_fast import unlearn_concept, unlearn_ddpm
from salun_fast.methods.ddpm import train_ddpm
from tests.conftest import same_bytes
from tests.diffusion.tiny import (
    FORGET,
    REPLACEMENT,
    RETAIN,
    class_unet,
    ddpm_scheduler,
    digits,
    moved,
    pictures,
    text_pipeline,
)
from tests.told import told_checkpoint

STEPS = 5  # checkpoints after 2, 4 and 5
COMMON = {
    "steps": STEPS,
    "checkpoint_every": 2,
    "report_every": 3,
    "batch_size": 4,
    "lr": 0.01,
    "progress": False,
    "seed": 3,
}


class Killed(Exception):
    pass


def kill_at(step):
    """A snapshot is taken after each step, before its checkpoint is written."""

    def on_snapshot(done, model):
        torch.randn(3)  # what a snapshot draws must not matter
        if done == step:
            raise Killed

    return {"on_snapshot": on_snapshot, "snapshot_every": 1}


def ddpm(model, **options):
    data = {"forget": digits(1, count=6), "retain": digits(0, 2, count=5)}
    given = {"forget_class": 1, "scheduler": ddpm_scheduler()}
    return unlearn_ddpm(model, **data | given | COMMON | options)


def concept(pipeline, **options):
    data = {"forget_images": pictures(6, seed=1), "retain_images": pictures(5, seed=2)}
    prompts = {
        "forget_prompt": FORGET,
        "replacement_prompt": REPLACEMENT,
        "retain_prompts": RETAIN,
    }
    return unlearn_concept(pipeline, **data | prompts | COMMON | options)


def train(model, **options):
    return train_ddpm(model, ddpm_scheduler(), digits(0, 1, 2, count=4), **COMMON | options)


CASES = {
    "ddpm": (ddpm, lambda: class_unet(dropout=0.1), {"ema_decay": 0.9, "preset": "reference"}),
    "ddpm, accumulated": (
        ddpm,
        lambda: class_unet(dropout=0.1),
        {"gradient_accumulation": 2, "schedule": "cosine", "warmup_steps": 1, "method": "rl"},
    ),
    "concept": (
        concept,
        lambda: text_pipeline(dropout=0.1),
        {"trainable": "xattn", "redraw_posterior": True, "condition_dropout": 0.3},
    ),
    "concept, accumulated": (
        concept,
        lambda: text_pipeline(dropout=0.1),
        {"gradient_accumulation": 2, "ema_decay": 0.9, "method": "random_mask"},
    ),
}


def told(history):
    return [{k: v for k, v in vars(record).items() if k != "seconds"} for record in history]


def assert_same_run(found, expected):
    assert not moved(found.unet, expected.unet)
    assert told(found.history) == told(expected.history)
    assert (found.averaged is None) is (expected.averaged is None)
    for name, value in (expected.averaged or {}).items():
        assert same_bytes(found.averaged[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(case, tmp_path):
    method, build, options = CASES[case]
    given = build()
    whole = method(given, run_dir=tmp_path / "whole", **options)
    for step in (3, 5):
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            method(given, run_dir=folder, **kill_at(step), **options)
        torch.manual_seed(99)  # a fresh process has other generators
        resumed = method(given, run_dir=folder, resume=True, **options)
        assert_same_run(resumed, whole)
        assert told_checkpoint(folder) == told_checkpoint(tmp_path / "whole")
        assert resumed.mask == whole.mask
        assert resumed.certificate == whole.certificate


def test_resume_without_a_checkpoint_starts_afresh(tmp_path):
    given = class_unet()
    whole = ddpm(given, steps=2)
    with pytest.raises(Killed):
        ddpm(given, steps=2, run_dir=tmp_path, **kill_at(1))
    assert not (tmp_path / "checkpoints").exists()
    assert_same_run(ddpm(given, steps=2, run_dir=tmp_path, resume=True), whole)


def test_training_resumes_bit_for_bit(tmp_path):
    options = {"ema_decay": 0.9, "gradient_accumulation": 2}
    given = class_unet(dropout=0.1)
    whole = train(given, run_dir=tmp_path / "whole", **options)

    def kill(record):
        if record.step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(given, run_dir=tmp_path / "killed", on_step=kill, **options)
    resumed = train(given, run_dir=tmp_path / "killed", resume=True, **options)
    assert_same_run(resumed, whole)
    assert told_checkpoint(tmp_path / "killed") == told_checkpoint(tmp_path / "whole")


def test_every_snapshot_is_taken_though_the_run_was_killed_in_one(tmp_path):
    given, seen = class_unet(), []

    def keep(done, model):
        seen.append(done)

    with pytest.raises(Killed):
        ddpm(given, run_dir=tmp_path, **kill_at(4))
    ddpm(given, run_dir=tmp_path, resume=True, on_snapshot=keep, snapshot_every=1)
    assert seen == [3, 4, 5]


def test_a_finished_run_resumes_to_its_result(tmp_path):
    given = class_unet()
    whole = ddpm(given, run_dir=tmp_path, ema_decay=0.9)
    again = ddpm(given, run_dir=tmp_path, ema_decay=0.9, resume=True)
    assert_same_run(again, whole)
    assert again.mask == whole.mask
    assert again.seconds == pytest.approx(whole.seconds)


def test_a_run_with_a_given_mask_resumes_with_it(tmp_path):
    given = class_unet()
    mask = ddpm(given, method="random_mask", density=0.2).mask
    whole = ddpm(given, mask=mask)
    with pytest.raises(Killed):
        ddpm(given, mask=mask, run_dir=tmp_path, **kill_at(3))
    resumed = ddpm(given, mask=mask, run_dir=tmp_path, resume=True)
    assert_same_run(resumed, whole)
    assert resumed.mask == mask


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ddpm(class_unet(), run_dir=folder)
    return folder


def other_weights():
    unet = class_unet()
    with torch.no_grad():
        unet.conv_in.bias[0] += 1
    return unet


OTHER = {
    "lr": (class_unet, {"lr": 0.02}, r"lr was 0\.01 and is 0\.02"),
    "seed": (class_unet, {"seed": 4}, "seed was 3 and is 4"),
    "method": (class_unet, {"method": "rl"}, "method was 'salun' and is 'rl'"),
    "alpha": (class_unet, {"alpha": 0.5}, r"alpha was 0\.001 and is 0\.5"),
    "forget": (class_unet, {"forget": digits(1, count=5)}, "forget was"),
    "retain": (class_unet, {"retain": digits(0, 2, count=4)}, "retain was"),
    "class": (class_unet, {"replacement_class": 2}, "replacement_class was None and is 2"),
    "model": (other_weights, {}, "model was"),
    "prediction": (
        class_unet,
        {"scheduler": ddpm_scheduler(prediction_type="v_prediction")},
        "prediction_type was 'epsilon' and is 'v_prediction'",
    ),
    "noise": (class_unet, {"scheduler": ddpm_scheduler(beta_end=0.03)}, "noise was"),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(case, finished):
    build, options, message = OTHER[case]
    with pytest.raises(ValueError, match=f"belongs to another run: .*{message}"):
        ddpm(build(), run_dir=finished, resume=True, **options)


def test_a_concept_run_with_other_prompts_or_pictures_is_refused(tmp_path):
    given = text_pipeline()
    with pytest.raises(Killed):
        concept(given, run_dir=tmp_path, **kill_at(3))
    for options, message in (
        ({"replacement_prompt": RETAIN}, "replacement was"),
        ({"retain_images": pictures(5, seed=9)}, "retain was"),
        ({"trainable": "xattn"}, "trainable was 'full' and is 'xattn'"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run: .*{message}"):
            concept(given, run_dir=tmp_path, resume=True, **options)


def test_a_damaged_checkpoint_is_one_clear_error(finished, tmp_path):
    content = (finished / "checkpoints" / "last.pt").read_bytes()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is truncated, altered or foreign"):
        ddpm(class_unet(), run_dir=tmp_path, resume=True)


def test_a_checkpoint_holds_only_the_weights_that_train(tmp_path):
    given = text_pipeline()
    result = concept(given, run_dir=tmp_path, trainable="xattn")
    content = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert set(content["model"]) == set(result.mask.names)
