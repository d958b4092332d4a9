"""Forgetting a class of a DDPM: losses, saliency, clip and freeze against hand computation."""

import copy
import math

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers.training_utils import EMAModel

from salun_fast import Saliency, SaliencyMask, UnlearningPatch, unlearn_ddpm
from salun_fast.data import ImageSet
from salun_fast.diffusion.denoising import Denoising
from salun_fast.diffusion.noisy import NoisyBatches
from salun_fast.methods.ddpm import train_ddpm
from salun_fast.optimizer import NonfiniteGradientError
from tests.conftest import same_bytes
from tests.diffusion.tiny import (
    CLASSES,
    Untouched,
    assert_frozen,
    assert_same_tensors,
    class_unet,
    ddpm_scheduler,
    digits,
    gradients,
    moments,
    moved,
    norm_of,
    probing,
    scaled,
)

FORGOTTEN, NULL = 1, CLASSES
BATCH = 4
# What makes a step a function that is easy to write down.
PLAIN = {"batch_size": BATCH, "condition_dropout": 0.0, "max_grad_norm": None}


@pytest.fixture
def unet():
    return class_unet()


@pytest.fixture
def scheduler():
    return ddpm_scheduler()


@pytest.fixture
def forget():
    return digits(FORGOTTEN, count=6)


@pytest.fixture
def retain():
    return digits(0, 2, count=5)


@pytest.fixture
def run(unet, scheduler, forget, retain):
    """``unlearn_ddpm`` on the tiny task, quietly."""

    def unlearn(model=unet, **options):
        given = {"forget_class": FORGOTTEN, "steps": 1, "batch_size": BATCH, "progress": False}
        data = {"scheduler": scheduler, "forget": forget, "retain": retain}
        return unlearn_ddpm(model, **data | given | options)

    return unlearn


def batches(data, scheduler, purpose, seed=0):
    def clean(indices, generator):
        return data.images[indices].float() / 127.5 - 1

    return NoisyBatches(
        clean, len(data), Denoising(scheduler), torch.device("cpu"), BATCH, seed, purpose
    )


def said(unet, batch, labels):
    labels = torch.as_tensor(labels).expand(len(batch.indices))
    return unet(batch.noisy, batch.timesteps, class_labels=labels).sample


def squares(prediction, target):
    """Summed over each image, averaged over the batch."""
    return (prediction - target).square().flatten(1).sum(1).mean()


def step_loss(unet, scheduler, forget, retain, number=0, *, replacement, alpha):
    """The reference's loss of batch ``number``, written out: (forget, retain, total)."""
    first = batches(forget, scheduler, "forget").sequence()(number)
    with torch.no_grad():
        taught = said(unet, first, replacement)
    forgetting = (said(unet, first, FORGOTTEN) - taught).square().mean()
    second = batches(retain, scheduler, "retain").sequence()(number)
    retaining = squares(said(unet, second, retain.labels[second.indices]), second.target)
    return forgetting, retaining, forgetting + alpha * retaining


def recorded(unet):
    """Calls of the UNet, and of its copies: (differentiated, in train mode, class labels); but for
    the one that asks what it predicts."""
    calls = []

    def keep(module, args, kwargs):
        if probing(module):
            return
        calls.append((torch.is_grad_enabled(), module.training, kwargs["class_labels"].tolist()))

    unet.register_forward_pre_hook(keep, with_kwargs=True)
    return calls


@pytest.fixture
def ranked(monkeypatch):
    """The scores that masks were built from."""
    seen = []
    mask = Saliency.mask

    def keep(self, *args, **kwargs):
        seen.append({name: self[name] for name in self.names})
        return mask(self, *args, **kwargs)

    monkeypatch.setattr(Saliency, "mask", keep)
    return seen


# --- saliency -------------------------------------------------------------------------------------


def test_reference_scores_are_the_magnitude_of_summed_unit_gradients_of_the_guided_loss(
    run, unet, scheduler, forget, ranked
):
    run(preset="reference")
    total, norms = None, []
    for batch in batches(forget, scheduler, "forget").one_pass():
        guided = 3.0 * said(unet, batch, FORGOTTEN) - 2.0 * said(unet, batch, NULL)
        grads = gradients(unet, squares(guided, batch.target))
        norms.append(norm_of(grads))
        clipped = scaled(grads, torch.clamp(1 / (norms[-1] + 1e-6), max=1.0))
        total = clipped if total is None else {n: total[n] + g for n, g in clipped.items()}
    assert len(norms) == 2  # four images and two
    assert min(norms) > 1
    assert_same_tensors(ranked[0], {name: value.abs() for name, value in total.items()})


def test_paper_scores_are_those_of_the_plain_loss_unclipped(run, unet, scheduler, forget, ranked):
    run(preset="paper")
    losses = [
        squares(said(unet, batch, FORGOTTEN), batch.target)
        for batch in batches(forget, scheduler, "forget").one_pass()
    ]
    grads = gradients(unet, sum(losses))
    assert_same_tensors(ranked[0], {name: value.abs() for name, value in grads.items()}, atol=1e-4)


def test_guided_scores_are_the_plain_ones_where_null_and_class_are_the_same(unet, run, ranked):
    with torch.no_grad():
        unet.class_embedding.weight[NULL] = unet.class_embedding.weight[FORGOTTEN]
    run(saliency_guidance=2.0)
    run(saliency_guidance=0.0)
    guided, plain = ranked
    rows = guided.pop("class_embedding.weight"), plain.pop("class_embedding.weight")
    assert_same_tensors(guided, plain, atol=1e-4)
    assert float(rows[0][NULL].max()) > 0  # the gradient goes through both predictions
    assert float(rows[1][NULL].max()) == 0


def test_scores_are_measured_in_eval_mode_at_the_original_weights(run, ranked):
    unet = class_unet(dropout=0.5).train()
    run(unet, seed=1)
    run(unet, seed=1, steps=2)
    assert_same_tensors(*ranked, atol=0, rtol=0)


def test_the_mask_has_the_density_of_all_weights_and_the_largest_scores(run, unet, ranked):
    mask = run(density=0.3).mask
    assert mask.count == int(sum(p.numel() for p in unet.parameters()) * 0.3)
    scores = torch.cat([ranked[0][name].flatten() for name in mask.names])
    chosen = torch.cat([mask[name].flatten() for name in mask.names])
    assert scores[chosen].min() >= scores[~chosen].max()


def test_the_control_draws_as_many_weights_by_seed(run, ranked):
    salun = run(method="salun").mask
    first, same, other = (run(method="random_mask", seed=seed).mask for seed in (0, 0, 1))
    assert first.count == salun.count
    assert first == same
    assert first != other != salun


# --- losses ---------------------------------------------------------------------------------------


def test_the_forget_loss_is_a_mean_and_the_retain_loss_a_pixel_sum(
    run, unet, scheduler, forget, retain
):
    record = run(preset="reference", condition_dropout=0.0, alpha=0.01).history[0]
    parts = step_loss(unet, scheduler, forget, retain, replacement=2, alpha=0.01)
    expected = [float(part.detach()) for part in parts]
    assert [record.parts["forget"], record.parts["retain"], record.loss] == pytest.approx(
        expected, rel=1e-4
    )


def test_the_gradient_is_that_of_the_written_loss_with_the_target_detached(
    run, unet, scheduler, forget, retain, tmp_path
):
    result = run(method="rl", preset="reference", alpha=0.01, run_dir=tmp_path, **PLAIN)
    *_, loss = step_loss(unet, scheduler, forget, retain, replacement=2, alpha=0.01)
    assert_same_tensors(moments(tmp_path), scaled(gradients(unet, loss), 0.1))
    assert result.history[0].grad_norm is None


@pytest.mark.parametrize(
    ("reductions", "ratio"),
    [(("pixel_sum", "pixel_sum"), (64, 64)), (("mean", "mean"), (1, 1))],
)
def test_reductions_are_settings(reductions, ratio, run):
    means = run(forget_reduction="mean", retain_reduction="mean").history[0].parts
    forget, retain = reductions
    parts = run(forget_reduction=forget, retain_reduction=retain).history[0].parts
    assert parts["forget"] == pytest.approx(ratio[0] * means["forget"], rel=1e-4)
    assert parts["retain"] == pytest.approx(ratio[1] * means["retain"], rel=1e-4)


def test_the_reference_teaches_the_next_class_by_a_pass_without_gradient(run, unet):
    calls = recorded(unet)
    run(preset="reference", method="rl", condition_dropout=0.0)
    teacher, student, _ = calls
    assert teacher == (False, True, [2] * BATCH)
    assert student == (True, True, [FORGOTTEN] * BATCH)


def test_the_next_class_after_the_last_is_the_first(unet, scheduler):
    calls = recorded(unet)
    last = CLASSES - 1
    unlearn_ddpm(
        unet,
        scheduler,
        digits(last, count=4),
        digits(0, 1, count=4),
        forget_class=last,
        preset="reference",
        method="rl",
        steps=1,
        batch_size=BATCH,
        progress=False,
    )
    assert calls[0][2] == [0] * BATCH


def test_the_paper_teaches_any_other_class_and_never_the_forgotten_one(run, unet):
    calls = recorded(unet)
    run(preset="paper", method="rl", steps=4, batch_size=16)
    taught = {
        label for differentiated, _, labels in calls if not differentiated for label in labels
    }
    assert taught == {0, 2}


def test_a_given_replacement_takes_the_presets_place(run, unet):
    calls = recorded(unet)
    run(preset="paper", method="rl", replacement_class=0)
    assert calls[0][2] == [0] * BATCH


def test_the_condition_is_dropped_in_the_retain_loss_alone(run, unet):
    calls = recorded(unet)
    run(method="rl", steps=3, batch_size=16, condition_dropout=0.5)
    retained = [label for _, _, labels in calls[2::3] for label in labels]
    assert 0.2 < retained.count(NULL) / len(retained) < 0.8
    assert NULL not in [label for _, _, labels in calls[0::3] + calls[1::3] for label in labels]


def test_the_teacher_is_the_model_as_it_is_at_each_step(run, unet, scheduler, forget, retain):
    weights = {}
    result = run(
        method="rl",
        preset="reference",
        steps=2,
        lr=0.01,
        condition_dropout=0.0,
        report_every=1,
        snapshot_every=1,
        on_snapshot=lambda done, model: weights.update({done: copy.deepcopy(model)}),
    )
    second = step_loss(weights[1], scheduler, forget, retain, 1, replacement=2, alpha=1e-3)
    assert result.history[1].parts["forget"] == pytest.approx(float(second[0].detach()), rel=1e-4)
    assert moved(unet, weights[1])


def test_gradient_ascent_climbs_the_forget_loss_alone(run, unet, scheduler, forget, tmp_path):
    result = run(method="ga", run_dir=tmp_path, **PLAIN)
    batch = batches(forget, scheduler, "forget").sequence()(0)
    loss = (said(unet, batch, FORGOTTEN) - batch.target).square().mean()
    assert_same_tensors(moments(tmp_path), scaled(gradients(unet, loss), -0.1))
    assert result.history[0].parts == {"forget": pytest.approx(float(loss.detach()), rel=1e-4)}
    assert result.mask is None
    assert result.certificate is None


# --- the step -------------------------------------------------------------------------------------


def test_the_full_gradient_is_clipped_before_it_is_masked(
    run, unet, scheduler, forget, retain, tmp_path
):
    options = PLAIN | {"max_grad_norm": 0.05}
    result = run(preset="reference", alpha=0.01, run_dir=tmp_path, **options)
    *_, loss = step_loss(unet, scheduler, forget, retain, replacement=2, alpha=0.01)
    grads = gradients(unet, loss)
    norm = norm_of(grads)
    assert norm > 0.05
    assert result.history[0].grad_norm == pytest.approx(float(norm), rel=1e-4)
    expected = {n: 0.1 * g * (0.05 / norm) * result.mask[n] for n, g in grads.items()}
    assert_same_tensors(moments(tmp_path), expected, atol=1e-8)


def test_at_density_one_clipping_before_and_after_the_mask_coincide(run, tmp_path):
    options = {"max_grad_norm": 0.05, "alpha": 0.01}
    run(density=1.0, run_dir=tmp_path / "masked", **options)
    run(method="rl", run_dir=tmp_path / "dense", **options)
    assert_same_tensors(moments(tmp_path / "masked"), moments(tmp_path / "dense"), atol=0, rtol=0)


def test_accumulated_batches_are_averaged_into_one_step(
    run, unet, scheduler, forget, retain, tmp_path
):
    options = PLAIN | {"gradient_accumulation": 2, "preset": "reference", "alpha": 0.01}
    result = run(method="rl", run_dir=tmp_path, **options)
    losses = [
        step_loss(unet, scheduler, forget, retain, number, replacement=2, alpha=0.01)[2]
        for number in (0, 1)
    ]
    grads = gradients(unet, sum(losses) / 2)
    assert_same_tensors(moments(tmp_path), scaled(grads, 0.1))
    assert result.history[0].loss == pytest.approx(float(sum(losses).detach() / 2), rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9, "dropout": 0.1},
        {"gradient_accumulation": 2, "method": "random_mask", "density": 0.1},
        {"prediction_type": "v_prediction", "preset": "reference", "replacement_class": 0},
        {"precision": "bf16", "schedule": "cosine", "density": 0.9},
    ],
    ids=lambda options: next(iter(options)),
)
def test_frozen_weights_keep_every_bit(options, run):
    unet = class_unet(dropout=options.pop("dropout", 0.0))
    kind = options.pop("prediction_type", "epsilon")
    with torch.no_grad():
        unet.conv_in.weight[0].fill_(-0.0)
    result = run(unet, scheduler=ddpm_scheduler(prediction_type=kind), steps=3, lr=0.01, **options)
    assert_frozen(unet, result.unet, result.mask)
    assert moved(unet, result.unet)
    certificate = result.certificate
    assert certificate.holds
    assert certificate.frozen == result.mask.numel - result.mask.count


def test_the_average_of_a_frozen_weight_is_that_weight_to_the_bit(run, unet):
    seen = []
    result = run(
        steps=3,
        lr=0.01,
        ema_decay=0.9,
        snapshot_every=1,
        on_snapshot=lambda _, model: seen.append(copy.deepcopy(model)),
    )
    average = EMAModel(seen[0].parameters(), decay=0.9)
    for model in seen[1:]:
        average.step(model.parameters())
    for (name, weight), expected in zip(
        unet.named_parameters(), average.shadow_params, strict=True
    ):
        assert same_bytes(result.averaged[name], expected)
        frozen = ~result.mask[name]
        assert same_bytes(result.averaged[name][frozen], weight[frozen])
    assert run().averaged is None


def test_bf16_changes_the_gradient_by_rounding_alone(run, tmp_path):
    for precision in ("fp32", "bf16"):
        run(method="rl", precision=precision, run_dir=tmp_path / precision, **PLAIN)
    exact, rounded = moments(tmp_path / "fp32"), moments(tmp_path / "bf16")
    for name, value in exact.items():
        likeness = torch.cosine_similarity(value.flatten(), rounded[name].flatten(), dim=0)
        assert likeness > 0.97 or value.norm() < 1e-3 * norm_of(exact), name


def test_half_precision_weights_learn_and_keep_their_dtype(run):
    unet = class_unet().to(torch.bfloat16)
    result = run(unet, lr=0.05)
    assert result.unet.dtype == torch.bfloat16
    assert_frozen(unet, result.unet, result.mask)
    assert moved(unet, result.unet)


def test_noise_is_scheduled_in_fp32_whatever_the_weights_are(forget, unet, run):
    seen = []

    def keep(module, args):
        if not probing(module):
            seen.append(args[0])

    half = class_unet().to(torch.bfloat16)
    for model in (unet, half):
        model.register_forward_pre_hook(keep)
        run(model, method="rl")
    exact, rounded = seen[0], seen[3]
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exact.bfloat16(), rounded)


def test_the_learning_rate_warms_up_and_falls_by_a_cosine(run):
    options = {"steps": 5, "lr": 0.01, "warmup_steps": 2, "report_every": 1, "method": "ga"}
    constant = [record.lr for record in run(**options).history]
    assert constant == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.01])
    cosine = [record.lr for record in run(schedule="cosine", **options).history]
    falling = [0.005 * (1 + math.cos(math.pi * share / 3)) for share in range(3)]
    assert cosine == pytest.approx([0.005, 0.01, *falling])


def test_snapshots_come_before_the_first_step_at_the_interval_and_after_the_last(run):
    seen = []
    run(
        steps=5,
        method="ga",
        snapshot_every=2,
        on_snapshot=lambda done, model: seen.append((done, model.training)),
    )
    assert seen == [(0, False), (2, False), (4, False), (5, False)]


def test_records_come_at_their_interval_at_checkpoints_and_at_the_end(run):
    seen = []
    result = run(steps=7, method="ga", report_every=3, checkpoint_every=4, on_step=seen.append)
    assert [record.step for record in seen] == [3, 4, 6, 7]
    assert tuple(seen) == result.history


# --- what is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["salun", "random_mask", "rl", "ga"])
def test_the_model_passed_and_torchs_random_state_are_left_alone(method, run):
    unet = class_unet(dropout=0.1)
    unet.down_blocks.train()
    unet.conv_in.bias.requires_grad_(False)
    untouched = Untouched(unet)
    result = run(unet, method=method, ema_decay=0.9)
    untouched.check()
    open_after = [p.requires_grad for p in result.unet.parameters()]
    assert open_after == [p.requires_grad for p in unet.parameters()]
    assert all(p.grad is None for p in result.unet.parameters())
    assert not result.unet.training
    assert "conv_in.bias" not in moved(unet, result.unet)


def test_the_same_call_gives_the_same_bits_whatever_ran_before(run):
    unet = class_unet(dropout=0.1)
    first = run(unet, steps=2)
    torch.manual_seed(99)
    torch.randn(7)
    second = run(unet, steps=2)
    other = run(unet, steps=2, seed=1)
    assert not moved(first.unet, second.unet)
    assert moved(first.unet, other.unet)


# --- masks of the user ----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.diffusion_model."])
def test_a_given_mask_is_used_whatever_wrapper_named_it(prefix, run, unet):
    plain = run(method="random_mask").mask
    named = SaliencyMask(
        {prefix + n: w for n, w in plain.words.items()},
        {prefix + n: s for n, s in plain.shapes.items()},
    )
    result = run(mask=named, lr=0.01)
    assert result.mask == plain
    assert result.certificate.holds
    assert result.seconds["saliency"] == 0.0
    assert_frozen(unet, result.unet, plain)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model."])
def test_the_patch_of_a_run_finds_its_weights_under_a_wrappers_names(prefix, run, unet):
    result = run(lr=0.01)
    patch = UnlearningPatch.between(unet, result.unet)
    assert 0 < patch.count <= result.mask.count
    wrapped = {prefix + name: tensor.clone() for name, tensor in unet.state_dict().items()}
    patch.apply_(wrapped)
    assert all(same_bytes(wrapped[prefix + n], t) for n, t in result.unet.state_dict().items())
    patch.remove_(wrapped)
    assert all(same_bytes(wrapped[prefix + n], t) for n, t in unet.state_dict().items())


def test_a_mask_of_another_model_is_refused(run):
    other = class_unet(classes=5)
    mask = Saliency(other).mask(0.5, which="random")
    with pytest.raises(ValueError, match=r"does not fit the model: 'class_embedding\.weight'"):
        run(mask=mask)
    foreign = SaliencyMask.from_dict({"fc.weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="does not fit the model"):
        run(mask=foreign)


@pytest.mark.parametrize("method", ["rl", "ga"])
def test_a_mask_for_a_method_without_one_is_refused(method, run, unet):
    mask = Saliency(unet).mask(0.5, which="random")
    with pytest.raises(ValueError, match=f"mask is for the methods .*found method '{method}'"):
        run(method=method, mask=mask)


# --- bad input ------------------------------------------------------------------------------------


def images(*shape, labels=(FORGOTTEN,), dtype=torch.uint8, value=0):
    tensor = torch.full((len(labels), *shape), value).to(dtype)
    return tensor, torch.tensor(labels, dtype=torch.int64)


BAD = {
    "class too big": ({"forget_class": CLASSES}, "forget_class must be a class 0..2"),
    "class negative": ({"forget_class": -1}, "forget_class must be a class 0..2"),
    "class a bool": ({"forget_class": True}, "forget_class must be a class 0..2.*True"),
    "class a float": ({"forget_class": 1.0}, "forget_class must be a class 0..2"),
    "replacement too big": ({"replacement_class": NULL}, "replacement_class must be a class"),
    "replacement the same": ({"replacement_class": FORGOTTEN}, "are both 1"),
    "no null class": (
        {"forget": images(1, 8, 8, labels=(NULL,))},
        r"forget\[0\] has label 3, which is this UNet's last class embedding",
    ),
    "label too big": (
        {"retain": images(1, 8, 8, labels=(0, 9))},
        "retain labels must lie in 0..2, found 9 at 1",
    ),
    "sample type": (
        {"scheduler": ddpm_scheduler(prediction_type="sample")},
        "prediction_type must be one of",
    ),
    "size": ({"forget": images(1, 9, 8)}, r"forget images must be \[n, 1, 8, 8\].*\[1, 1, 9, 8\]"),
    "channels": ({"retain": images(3, 8, 8, labels=(0,))}, r"retain images must be \[n, 1, 8, 8\]"),
    "range": (
        {"forget": images(1, 8, 8, dtype=torch.float32, value=255)},
        r"forget images must lie in \[-1, 1\].*to 255",
    ),
    "nan": (
        {"forget": (torch.full((1, 1, 8, 8), math.nan), torch.tensor([FORGOTTEN]))},
        r"forget images must lie in \[-1, 1\]",
    ),
    "other classes in forget": ({"forget": digits(0, 1, count=2)}, "found 2 of other classes"),
    "forgotten in retain": ({"retain": digits(0, 1, count=2)}, "retain holds 2 images of class 1"),
    "empty forget": ({"forget": images(1, 8, 8, labels=())}, "forget holds no images"),
    "empty retain": ({"retain": images(1, 8, 8, labels=())}, "retain holds no images"),
    "alpha": ({"alpha": 0.0}, "alpha must be greater than 0, found 0.0: without the retain loss"),
    "method": ({"method": "saluun"}, "method must be one of"),
    "preset": ({"preset": "papers"}, "preset must be one of"),
    "density": ({"density": 0.0}, "density must lie in"),
    "steps": ({"steps": 0}, "steps must be at least 1"),
    "snapshots": ({"on_snapshot": print}, "snapshot_every must be at least 1"),
    "resume": ({"resume": True}, "resume=True needs run_dir"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words_before_anything_is_changed(case, run, unet):
    options, message = BAD[case]
    untouched = Untouched(unet)
    with pytest.raises(ValueError, match=message):
        run(**options)
    untouched.check()


def test_bad_input_leaves_no_folder_behind(run, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="alpha"):
        run(alpha=0.0, run_dir=folder)
    with pytest.raises(ValueError, match="forget_class"):
        run(forget_class=7, run_dir=folder)
    assert not folder.exists()


def test_integers_that_are_no_bytes_are_refused(run):
    with pytest.raises(TypeError, match=r"must be uint8 or floating point.*torch\.int64"):
        run(forget=images(1, 8, 8, dtype=torch.int64))


def test_a_misspelt_setting_is_an_error_that_names_the_right_one(run):
    with pytest.raises(TypeError, match="unknown setting 'densty'; did you mean 'density'"):
        run(densty=0.5)


def test_a_unet_without_class_embedding_is_refused(run):
    from diffusers import UNet2DModel

    config = dict(class_unet().config) | {"num_class_embeds": None}
    with pytest.raises(ValueError, match="must have a class embedding"):
        run(UNet2DModel.from_config(config))


def test_a_unet_with_learned_variance_is_refused(run):
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_config(dict(class_unet().config) | {"out_channels": 2})
    with pytest.raises(ValueError, match="out_channels 2 and in_channels 1"):
        run(unet)


def test_nan_weights_stop_the_run_naming_a_parameter(run, unet):
    with torch.no_grad():
        unet.conv_out.weight[0, 0, 0, 0] = math.nan
    untouched = Untouched(unet)
    with pytest.raises(NonfiniteGradientError, match=r"gradient of 'conv_in\.weight'"):
        run(method="rl")
    with pytest.raises(NonfiniteGradientError, match="holds NaN or infinity"):
        run(method="rl", max_grad_norm=None)
    with pytest.raises(ValueError, match="gradient of 'conv_.*holds NaN or infinity"):
        run(method="salun")
    untouched.check()


def test_images_that_look_like_0_to_1_are_warned_of(run, forget):
    unit = (forget.images.float() / 255, forget.labels)
    with pytest.warns(UserWarning, match="forget images hold no negative value"):
        run(forget=unit, method="ga")


def test_bytes_symmetric_floats_and_normalised_sets_are_the_same_images(run, forget):
    first = run(method="ga").history[0].loss
    symmetric = (forget.images.float() / 127.5 - 1, forget.labels)
    normalised = ImageSet(forget.images, forget.labels, (0.3,), (0.2,))
    unit = ImageSet(forget.images.float() / 255, forget.labels, (0.5,), (0.5,))
    for given in (symmetric, normalised, unit):
        assert run(method="ga", forget=given).history[0].loss == pytest.approx(first, rel=1e-5)


# --- training -------------------------------------------------------------------------------------


def test_training_descends_the_written_loss_and_leaves_the_model_alone(
    unet, scheduler, retain, tmp_path
):
    untouched = Untouched(unet)
    result = train_ddpm(
        unet, scheduler, retain, steps=1, run_dir=tmp_path, progress=False, ema_decay=0.5, **PLAIN
    )
    untouched.check()
    batch = batches(retain, scheduler, "retain").sequence()(0)
    loss = (said(unet, batch, retain.labels[batch.indices]) - batch.target).square().mean()
    assert_same_tensors(moments(tmp_path), scaled(gradients(unet, loss), 0.1))
    assert result.history[0].parts == {"denoise": pytest.approx(float(loss.detach()), rel=1e-4)}
    assert result.averaged.keys() == dict(unet.named_parameters()).keys()
    assert not result.unet.training


def test_training_data_of_no_class_is_refused(unet, scheduler):
    with pytest.raises(ValueError, match=r"data\[0\] has label 3.*null class"):
        train_ddpm(unet, scheduler, images(1, 8, 8, labels=(NULL,)), progress=False)
    with pytest.raises(TypeError, match="unknown setting 'alpha'"):
        train_ddpm(unet, scheduler, digits(0, count=2), alpha=1.0, progress=False)


def test_a_scheduler_of_another_prediction_type_than_the_unets_is_refused(forget, retain):
    """An oracle that knows the clean images predicts the noise of every step."""
    clean = torch.cat(
        [
            ImageSet(d.images, d.labels, (0.5,), (0.5,)).batch(torch.arange(len(d)))[0]
            for d in (forget,)
        ]
    )
    alphas = ddpm_scheduler().alphas_cumprod

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = class_unet()
            self.config, self.dtype = self.inner.config, torch.float32

        def forward(self, noisy, timesteps, class_labels):
            kept = alphas[timesteps].view(-1, 1, 1, 1)
            noise = (noisy - kept.sqrt() * clean[: len(noisy)]) / (1 - kept).sqrt()
            return type("Said", (), {"sample": noise + 0 * self.inner.conv_in.weight.sum()})

    with pytest.raises(ValueError, match=r"is 'v_prediction'.*fits 'epsilon'.*trained with"):
        unlearn_ddpm(
            Oracle(), ddpm_scheduler(prediction_type="v_prediction"), forget, retain,
            forget_class=FORGOTTEN, steps=1, batch_size=BATCH, progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("steps", 2.5), ("alpha", "1e-3"), ("lr", True)])
def test_a_setting_of_the_wrong_type_is_named(run, name, value):
    with pytest.raises(TypeError, match=f"{name} must be a .*found"):
        run(**{name: value})
