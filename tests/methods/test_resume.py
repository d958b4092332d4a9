"""Checkpoints: killed at any moment, a run goes on as if nothing had been."""

import ctypes

import pytest
import torch

from salun_fast import sealed
from salun_fast.files import FileFormatError
from salun_fast.methods import METHODS, train_classifier, unlearn_classifier
from tests.methods.tiny import same_weights
from tests.told import told_checkpoint


class Killed(Exception):
    pass


def kill_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise Killed

    return on_epoch


CASES = [
    *((method, {}) for method in METHODS),
    ("salun_soft", {"preset": "reference"}),
    ("salun", {"order": "mixed", "augment": "flip_crop"}),
    ("salun", {"schedule": "cosine", "warmup_epochs": 0.5, "precision": "bf16"}),
    ("rl", {"schedule": "multistep", "milestones": (2,)}),
]


@pytest.mark.parametrize(("method", "extra"), CASES)
@pytest.mark.parametrize("epoch", [1, 3])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    method, extra, epoch, model, forget, retain, tmp_path
):
    settings = {"epochs": 4, "batch_size": 16, "lr": 0.05, "progress": False, "seed": 3} | extra

    def run(folder, **more):
        return unlearn_classifier(
            model, forget, retain, method=method, run_dir=tmp_path / folder, **settings | more
        )

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", on_epoch=kill_after(epoch))
    torch.manual_seed(99)  # a fresh process has other generators
    resumed = run("killed", resume=True)
    assert same_weights(whole.model, resumed.model)
    assert told_checkpoint(tmp_path / "killed") == told_checkpoint(tmp_path / "whole")
    assert resumed.mask == whole.mask
    assert resumed.certificate == whole.certificate


def test_a_run_with_a_given_mask_resumes_with_it(model, forget, retain, quick, tmp_path):
    mask = unlearn_classifier(model, forget, retain, method="random_mask", **quick).mask
    arguments = {"mask": mask, "method": "ft"} | quick
    whole = unlearn_classifier(model, forget, retain, run_dir=tmp_path / "whole", **arguments)
    killed = {"run_dir": tmp_path / "killed"} | arguments
    with pytest.raises(Killed):
        unlearn_classifier(model, forget, retain, on_epoch=kill_after(1), **killed)
    resumed = unlearn_classifier(model, forget, retain, resume=True, **killed)
    assert resumed.mask == whole.mask == mask
    assert told_checkpoint(tmp_path / "killed") == told_checkpoint(tmp_path / "whole")
    with pytest.raises(ValueError, match="another run: given_mask was"):
        unlearn_classifier(model, forget, retain, resume=True, **killed | {"mask": ~mask})


def test_training_resumes_bit_for_bit(model, retain, tmp_path):
    settings = {"epochs": 3, "batch_size": 16, "progress": False}
    whole = train_classifier(model, retain, run_dir=tmp_path / "whole", **settings)
    killed = {"run_dir": tmp_path / "killed"} | settings
    with pytest.raises(Killed):
        train_classifier(model, retain, on_epoch=kill_after(2), **killed)
    torch.manual_seed(99)
    resumed = train_classifier(model, retain, resume=True, **killed)
    assert same_weights(whole.model, resumed.model)
    assert told_checkpoint(tmp_path / "killed") == told_checkpoint(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_is_kept_or_not_as_each_call_says_and_the_bits_stay(
    model, forget, retain, quick, tmp_path
):
    whole = unlearn_classifier(model, forget, retain, run_dir=tmp_path / "whole", **quick)
    killed = {"run_dir": tmp_path / "killed"} | quick
    with pytest.raises(Killed):
        unlearn_classifier(
            model, forget, retain, keep_memory=True, on_epoch=kill_after(1), **killed
        )
    resumed = unlearn_classifier(model, forget, retain, resume=True, **killed)
    assert same_weights(whole.model, resumed.model)
    assert told_checkpoint(tmp_path / "killed") == told_checkpoint(tmp_path / "whole")
    again = unlearn_classifier(model, forget, retain, keep_memory=True, resume=True, **killed)
    assert again.settings.keep_memory


def test_a_finished_run_resumes_to_its_result(model, forget, retain, quick, tmp_path):
    whole = unlearn_classifier(model, forget, retain, run_dir=tmp_path, **quick)
    again = unlearn_classifier(model, forget, retain, run_dir=tmp_path, resume=True, **quick)
    assert same_weights(whole.model, again.model)
    assert again.seconds == pytest.approx(whole.seconds)


def test_resume_without_a_checkpoint_starts_afresh(model, forget, retain, quick, tmp_path):
    plain = unlearn_classifier(model, forget, retain, **quick)
    resumed = unlearn_classifier(model, forget, retain, run_dir=tmp_path, resume=True, **quick)
    assert same_weights(plain.model, resumed.model)
    with pytest.raises(ValueError, match="resume=True needs run_dir"):
        unlearn_classifier(model, forget, retain, resume=True, **quick)


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(
    model, forget, retain, quick, tmp_path
):
    unlearn_classifier(model, forget, retain, run_dir=tmp_path, **quick)
    arguments = {"run_dir": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"another run: lr was 0\.05 and is 0\.07"):
        unlearn_classifier(model, forget, retain, **arguments, **quick | {"lr": 0.07})
    with pytest.raises(ValueError, match="another run: forget was"):
        unlearn_classifier(model, retain, retain, **arguments, **quick)


def _sealed(path, **changes):
    sealed.save(path, torch.load(path, weights_only=True) | changes)


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is truncated, altered or"),
    "altered": (lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]), "was altered"),
    "foreign": (lambda path: path.write_text("not a checkpoint"), "is truncated, altered or for"),
    "older": (lambda path: torch.save({"format": 2}, path), "has no checksum: an older salun-fast"),
    "newer": (lambda path: _sealed(path, format=4), "has format 4, expected 3"),
    "odd format": (lambda path: _sealed(path, format=torch.ones(2)), "has format tensor"),
    "no dict": (lambda path: sealed.save(path, [3]), "has format None"),
    "odd identity": (lambda path: _sealed(path, identity="[3]"), "contents contradict its header"),
    "no model": (lambda path: _sealed(path, model=None), "contents contradict its header"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_clear_error(damage, model, forget, retain, quick, tmp_path):
    unlearn_classifier(model, forget, retain, run_dir=tmp_path, **quick)
    path = tmp_path / "checkpoints" / "last.pt"
    alter, message = DAMAGE[damage]
    alter(path)
    with pytest.raises(FileFormatError, match=rf"last\.pt: .*{message}.*\. Delete it to start afr"):
        unlearn_classifier(model, forget, retain, run_dir=tmp_path, resume=True, **quick)


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(
    model, forget, retain, quick, tmp_path
):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".last.pt.0123456789ab.tmp").write_bytes(b"half of a checkpoint")
    for own in ("notes.tmp", ".hidden.tmp", ".a.0123456789ab.tmp.bak"):
        (folder / own).touch()
    unlearn_classifier(model, forget, retain, run_dir=tmp_path, resume=True, **quick)
    left = {path.name for path in folder.iterdir()}
    assert left == {"last.pt", "notes.tmp", ".hidden.tmp", ".a.0123456789ab.tmp.bak"}


def test_checkpoints_hold_no_pickled_code(model, forget, retain, quick, tmp_path):
    unlearn_classifier(model, forget, retain, run_dir=tmp_path, **quick)
    torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]
