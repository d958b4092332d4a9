"""Whole methods on tiny data (ACCEPTANCE B9, C1, C5)."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F

from salun_fast import models
from salun_fast.data import ImageSet, forget_split, load_images
from salun_fast.evaluation import outputs
from salun_fast.mask import SaliencyMask
from salun_fast.methods import METHODS, classifier, train_classifier, unlearn_classifier
from salun_fast.methods.plans import plain_plan
from salun_fast.methods.random_label import random_label_plan
from salun_fast.methods.settings import resolve
from tests.methods.tiny import blobs, same_weights

MASKED = ("salun", "random_mask")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_leaves_the_passed_model_alone(
    method, model, forget, retain, test_set, quick
):
    before = copy.deepcopy(model)
    result = unlearn_classifier(model, forget, retain, method=method, test=test_set, **quick)
    assert same_weights(model, before)
    assert model.training == before.training
    assert not same_weights(result.model, before)
    assert [record.epoch for record in result.history] == [1, 2]
    assert result.method == method
    assert not result.model.training
    assert result.peak_memory_mb > 0
    assert (result.mask is not None) == (method in MASKED)


@pytest.mark.parametrize("method", MASKED)
def test_frozen_weights_keep_every_bit_and_the_certificate_says_so(
    method, model, forget, retain, quick
):
    result = unlearn_classifier(model, forget, retain, method=method, density=0.3, **quick)
    original = dict(model.named_parameters())
    moved = 0
    for name, parameter in result.model.named_parameters():
        changed = parameter.detach() != original[name].detach()
        assert not (changed & ~result.mask[name]).any()
        moved += int(changed.sum())
    numel = sum(p.numel() for p in model.parameters())
    assert moved > 0
    assert result.mask.count == int(numel * 0.3)
    assert result.certificate.holds
    assert (result.certificate.frozen, result.certificate.changed) == (
        numel - int(numel * 0.3),
        0,
    )
    assert result.certificate.digest_before == result.certificate.digest_after


def test_random_mask_is_another_mask_of_the_same_size(model, forget, retain, quick):
    masks = [
        unlearn_classifier(model, forget, retain, method=method, **quick).mask
        for method in ("salun", "random_mask")
    ]
    assert masks[0].count == masks[1].count
    assert masks[0].fingerprint != masks[1].fingerprint


def test_c1_rl_equals_the_loop_written_out_by_hand(model, forget, retain):
    """One optimizer for both passes, its momentum carried over from pass to pass and epoch to
    epoch."""
    settings = resolve("rl", "paper", {"epochs": 3, "batch_size": 16, "lr": 0.05})
    result = unlearn_classifier(
        model, forget, retain, method="rl", epochs=3, batch_size=16, lr=0.05, seed=7, progress=False
    )
    byhand = copy.deepcopy(model).to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(byhand.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    plan = random_label_plan(forget, retain, settings, 4)
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        byhand.train()
        for _ in range(3):
            for images, labels in plan.batches(generator):
                sgd.zero_grad()
                F.cross_entropy(byhand(images), labels).backward()
                sgd.step()
    for (name, ours), theirs in zip(
        result.model.state_dict().items(), byhand.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg=name)


def test_ga_climbs_the_loss_on_the_forget_set(model, forget, retain):
    trained = train_classifier(model, retain, epochs=5, batch_size=16, progress=False).model
    result = unlearn_classifier(
        trained, forget, retain, method="ga", lr=0.01, batch_size=16, progress=False
    )
    images, labels = forget.batch(torch.arange(len(forget)))
    with torch.no_grad():
        before = F.cross_entropy(trained(images), labels)
        after = F.cross_entropy(result.model(images), labels)
    assert after > before


def test_ft_and_retrain_never_see_the_forget_images(model, forget, retain, quick):
    spoiled = ImageSet(torch.full_like(forget.images, float("nan")), forget.labels)
    for method in ("ft", "retrain"):
        clean = unlearn_classifier(model, forget, retain, method=method, **quick)
        other = unlearn_classifier(model, spoiled, retain, method=method, **quick)
        assert same_weights(clean.model, other.model)


def test_retrain_starts_from_fresh_weights(model, forget, retain):
    settings = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "progress": False, "seed": 5}
    result = unlearn_classifier(model, forget, retain, method="retrain", **settings)
    assert (result.model.head.weight - model.head.weight).abs().max() > 0.01


def test_retrain_refuses_parameters_it_cannot_draw_afresh(forget, retain, quick):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(36, 4))

        def forward(self, x):
            return x.flatten(1) @ self.table

    with pytest.raises(ValueError, match="Build a fresh model and use train_classifier"):
        unlearn_classifier(Odd(), forget, retain, method="retrain", **quick)


@pytest.mark.parametrize("order", ["sequential", "mixed"])
@pytest.mark.parametrize("method", ["salun", "salun_soft", "random_mask", "ft", "retrain"])
def test_same_seed_same_weights_bit_for_bit(method, order, model, forget, retain, quick):
    def run(seed):
        torch.manual_seed(seed + 100)  # what the caller's generators are at must not matter
        return unlearn_classifier(
            model, forget, retain, method=method, order=order, seed=seed, **quick
        ).model

    assert same_weights(run(1), run(1))
    assert not same_weights(run(1), run(2))


def test_the_callers_random_state_is_left_as_it_was(model, forget, retain, quick):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    unlearn_classifier(model, forget, retain, method="salun", **quick)
    assert torch.equal(torch.rand(3), expected)


def test_b9_norm_statistics_move_unless_held(model, forget, retain, quick):
    for parameter in model.norm.parameters():
        parameter.requires_grad_(False)
    moved = unlearn_classifier(model, forget, retain, **quick).model
    held = unlearn_classifier(model, forget, retain, hold_norm_stats=True, **quick).model
    assert not torch.equal(moved.norm.running_mean, model.norm.running_mean)
    assert torch.equal(held.norm.running_mean, model.norm.running_mean)
    assert torch.equal(held.norm.running_var, model.norm.running_var)
    assert torch.equal(held.norm.num_batches_tracked, model.norm.num_batches_tracked)
    assert not torch.equal(held.head.weight, model.head.weight)
    assert torch.equal(moved.norm.weight, model.norm.weight)


def test_seconds_count_the_masks_cost(model, forget, retain, quick):
    seconds = unlearn_classifier(model, forget, retain, method="salun", **quick).seconds
    assert seconds["saliency"] > 0
    assert seconds["select"] > 0
    parts = seconds["saliency"] + seconds["select"] + seconds["train"]
    assert seconds["total"] == pytest.approx(parts)


def test_a_given_mask_is_used(model, forget, retain, quick):
    mask = SaliencyMask.from_dict(
        {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
        | {"head.bias": torch.ones(4, dtype=torch.bool)}
    )
    for method in ("salun", "ft", "ga"):
        result = unlearn_classifier(model, forget, retain, method=method, mask=mask, **quick)
        assert result.certificate.holds
        assert not torch.equal(result.model.head.bias, model.head.bias)
    with pytest.raises(ValueError, match=r"'rl' takes no mask.*rl with a mask is salun"):
        unlearn_classifier(model, forget, retain, method="rl", mask=mask, **quick)


def test_a_mask_that_does_not_fit_is_refused_before_anything_changes(model, forget, retain, quick):
    mask = SaliencyMask.from_dict({"head.weight": torch.ones(5, 96, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"head\.weight|conv\.weight"):
        unlearn_classifier(model, forget, retain, mask=mask, **quick)


def test_hint_when_ua_does_not_move(model, forget, retain):
    settings = {"epochs": 2, "batch_size": 16, "hold_norm_stats": True, "progress": False}
    stuck = unlearn_classifier(model, forget, retain, lr=1e-9, **settings)
    assert "try a larger lr, e.g. lr=3e-09 or a larger density" in stuck.history[0].hint
    assert stuck.history[1].hint is None
    moved = unlearn_classifier(model, forget, retain, lr=0.3, **settings)
    assert moved.history[0].hint is None


def test_readout_shows_ua_ra_loss_and_speed(model, forget, retain, quick, capsys):
    seen = []
    unlearn_classifier(model, forget, retain, on_epoch=seen.append, **quick | {"progress": True})
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert len([line for line in lines if "UA" in line]) == 2
    for word in ("RA", "loss", "images/s"):
        assert word in lines[0]
    assert [record.epoch for record in seen] == [1, 2]
    assert all(0 <= record.ua <= 100 for record in seen)


def test_only_what_is_shown_is_judged(monkeypatch, model, forget, retain, quick, tmp_path):
    judged = []

    def counted(model, data):
        judged.append(len(data))
        return outputs(model, data)

    monkeypatch.setattr(classifier, "outputs", counted)
    settings = quick | {"run_dir": tmp_path / "judged"}
    unlearn_classifier(model, forget, retain, **settings)
    assert judged == [22, 22, 50, 22, 50]  # UA for the hint, then UA and RA after both epochs
    unlearn_classifier(model, forget, retain, resume=True, **settings)
    assert len(judged) == 5
    silent = unlearn_classifier(model, forget, retain, readout_images=0, **quick)
    trained = train_classifier(model, retain, readout_images=0, **quick)
    assert len(judged) == 5
    shown = [(r.ua, r.ra, r.ta, r.hint) for r in (*silent.history, *trained.history)]
    assert shown == [(None, None, None, None)] * 4


def test_warning_without_retain_data(model, forget, quick):
    with pytest.warns(UserWarning, match="accuracy on everything else is likely to collapse"):
        unlearn_classifier(model, forget, None, **quick)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unlearn_classifier(model, forget, None, method="ga", **quick)
    with pytest.raises(ValueError, match="'ft' trains on retain data"):
        unlearn_classifier(model, forget, None, method="ft", **quick)


def with_labels(data, labels):
    return ImageSet(data.images, torch.tensor(labels))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, r: (ImageSet(f.images[:0], f.labels[:0]), r), "forget holds no images"),
        (lambda f, r: (f, ImageSet(r.images[:0], r.labels[:0])), "retain holds no images"),
        (
            lambda f, r: (with_labels(f, [0] * 21 + [4]), r),
            r"forget labels must lie in 0\.\.3 .* found 4 at index 21",
        ),
        (lambda f, r: (f, with_labels(r, [-1] + [0] * 49)), "retain labels .* found -1 at index 0"),
        (
            lambda f, r: (f, ImageSet(r.images[:, :, :5], r.labels)),
            r"retain images must have the same shape, found \[1, 6, 6\] and \[1, 5, 6\]",
        ),
        (
            lambda f, r: (
                ImageSet(f.images[:, :, :2], f.labels),
                ImageSet(r.images[:, :, :2], r.labels),
            ),
            "the model does not take the forget images",
        ),
    ],
)
def test_bad_input_is_named_before_anything_changes(
    spoil, message, model, forget, retain, quick, tmp_path
):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        unlearn_classifier(model, *spoil(forget, retain), run_dir=tmp_path, **quick)
    assert same_weights(model, before)
    assert not any(tmp_path.iterdir())


def test_a_batch_of_one_image_too_few_for_its_norm_layers_is_explained(forget, retain, quick):
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(36), torch.nn.Linear(36, 4)
    )
    one = forget.subset([0])
    with pytest.raises(ValueError, match="a batch holds a single image.*hold_norm_stats=True"):
        unlearn_classifier(model, one, retain, **quick)
    held = unlearn_classifier(model, one, retain, hold_norm_stats=True, **quick)
    assert held.certificate.holds


def test_wrong_number_of_classes_is_an_error(model, forget, retain, quick):
    with pytest.raises(ValueError, match="num_classes is 5 and the model tells 4"):
        unlearn_classifier(model, forget, retain, num_classes=5, **quick)


def test_bf16_autocast_keeps_weights_in_fp32(model, forget, retain, quick):
    result = unlearn_classifier(model, forget, retain, precision="bf16", **quick)
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.certificate.holds


def test_training_learns_and_repeats(model, retain, test_set):
    def run():
        return train_classifier(
            model, retain, test=test_set, epochs=6, batch_size=16, lr=0.05, progress=False
        )

    first, second = run(), run()
    assert first.history[-1].ta > 90
    assert first.history[-1].loss < first.history[0].loss
    assert same_weights(first.model, second.model)


def test_plain_plan_counts_what_it_yields(retain):
    plan = plain_plan(retain, resolve("ft", "paper", {"batch_size": 16}))
    batches = list(plan.batches(torch.Generator()))
    assert (plan.steps, plan.images) == (len(batches), sum(len(y) for _, y in batches)) == (4, 50)


@pytest.fixture(scope="module")
def digits():
    """A classifier that knows the digits, and the split that forgets the threes."""
    pytest.importorskip("sklearn")
    data = load_images("digits")
    torch.manual_seed(0)
    start = models.build("resnet18", 10, width=4, in_channels=1)
    settings = {"epochs": 8, "batch_size": 64, "schedule": "cosine", "progress": False}
    trained = train_classifier(start, data.train, **settings).model
    forget, retain = forget_split(data.train.labels, forget_class=3)
    return trained, data.train.subset(forget), data.train.subset(retain)


def test_c5_a_trained_classifier_forgets_a_class_and_keeps_the_rest(digits):
    trained, forget, retain = digits
    settings = {"epochs": 3, "batch_size": 64, "lr": 0.05, "progress": False}
    salun = unlearn_classifier(trained, forget, retain, method="salun", **settings)
    control = unlearn_classifier(trained, forget, retain, method="random_mask", **settings)
    assert outputs(trained, forget).accuracy > 90
    assert outputs(salun.model, forget).accuracy < 50
    assert outputs(salun.model, retain).accuracy > outputs(trained, retain).accuracy - 5
    assert salun.certificate.holds
    assert control.certificate.holds
    assert salun.mask.count == control.mask.count


def test_blobs_are_not_trivially_equal():
    assert not torch.equal(blobs(8, 1).images, blobs(8, 2).images)
