"""Forgetting a prompt: losses, saliency, trainable sets and adapters against hand computation."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from salun_fast import Saliency, SaliencyMask, unlearn_concept
from salun_fast.diffusion.components import Components
from salun_fast.diffusion.denoising import Denoising
from salun_fast.diffusion.encoded import encode
from salun_fast.diffusion.noisy import NoisyBatches
from tests.conftest import same_bytes
from tests.diffusion.tiny import (
    FORGET,
    LONG,
    REPLACEMENT,
    RETAIN,
    Untouched,
    assert_frozen,
    assert_same_tensors,
    ddpm_scheduler,
    gradients,
    moments,
    moved,
    pictures,
    probing,
    scaled,
    text_pipeline,
)

BATCH = 4
FORGET_IMAGES, RETAIN_IMAGES = pictures(6, seed=1), pictures(5, seed=2)


@pytest.fixture
def pipeline():
    return text_pipeline()


@pytest.fixture
def run(pipeline):
    """``unlearn_concept`` on the tiny task, quietly."""

    def unlearn(given=pipeline, **options):
        settings = {
            "forget_images": FORGET_IMAGES,
            "retain_images": RETAIN_IMAGES,
            "forget_prompt": FORGET,
            "replacement_prompt": REPLACEMENT,
            "retain_prompts": RETAIN,
            "steps": 1,
            "batch_size": BATCH,
            "progress": False,
        }
        return unlearn_concept(given, **settings | options)

    return unlearn


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


def encoded(pipeline, images, prompt):
    return encode(Components.of(pipeline), images, [prompt] * len(images), None)


def batches(data, pipeline, purpose):
    return NoisyBatches(
        data.latents,
        len(data),
        Denoising(pipeline.scheduler),
        torch.device("cpu"),
        BATCH,
        0,
        purpose,
        antithetic=False,
    )


def said(pipeline, batch, prompt, noisy=None):
    (embedding,) = Components.of(pipeline).embeddings([prompt])
    conditions = embedding.expand(len(batch.indices), -1, -1)
    noisy = batch.noisy if noisy is None else noisy
    return pipeline.unet(noisy, batch.timesteps, encoder_hidden_states=conditions).sample


def step_loss(pipeline, alpha, *, redrawn=False):
    """The first batch's loss, written out: (forget, retain, total)."""
    drawing = batches(encoded(pipeline, FORGET_IMAGES, FORGET), pipeline, "forget")
    first = drawing.sequence()(0)
    with torch.no_grad():
        noisy = drawing.renoised(first) if redrawn else first.noisy
        taught = said(pipeline, first, REPLACEMENT, noisy)
    forget = (said(pipeline, first, FORGET) - taught).square().mean()
    second = batches(encoded(pipeline, RETAIN_IMAGES, RETAIN), pipeline, "retain").sequence()(0)
    retain = (said(pipeline, second, RETAIN) - second.target).square().mean()
    return forget, retain, forget + alpha * retain


def recorded(unet):
    """Calls of the UNet, and of its copies: (differentiated, noisy, conditions); but for the one
    that asks what it predicts."""
    calls = []

    def keep(module, args, kwargs):
        if probing(module):
            return
        calls.append(
            (torch.is_grad_enabled(), args[0].clone(), kwargs["encoder_hidden_states"].clone())
        )

    unet.register_forward_pre_hook(keep, with_kwargs=True)
    return calls


def parts_of(pipeline):
    return pipeline.unet, pipeline.vae, pipeline.text_encoder


# --- saliency -------------------------------------------------------------------------------------


def test_reference_scores_are_of_the_guided_loss_unclipped(run, pipeline, ranked):
    run(preset="reference")
    total = None
    for batch in batches(encoded(pipeline, FORGET_IMAGES, FORGET), pipeline, "forget").one_pass():
        guided = 8.5 * said(pipeline, batch, FORGET) - 7.5 * said(pipeline, batch, "")
        grads = gradients(pipeline.unet, (guided - batch.target).square().mean())
        total = grads if total is None else {n: total[n] + g for n, g in grads.items()}
    assert_same_tensors(ranked[0], {name: value.abs() for name, value in total.items()}, atol=1e-4)


def test_paper_scores_are_of_the_plain_loss(run, pipeline, ranked):
    run(preset="paper")
    losses = [
        (said(pipeline, batch, FORGET) - batch.target).square().mean()
        for batch in batches(
            encoded(pipeline, FORGET_IMAGES, FORGET), pipeline, "forget"
        ).one_pass()
    ]
    grads = gradients(pipeline.unet, sum(losses))
    assert_same_tensors(ranked[0], {name: value.abs() for name, value in grads.items()}, atol=1e-5)


def test_the_null_prompt_is_the_empty_one_and_not_the_forget_prompt(run, pipeline):
    calls = recorded(pipeline.unet)
    run(preset="reference")
    differentiated, _, conditions = calls[0]
    asked, nothing = Components.of(pipeline).embeddings([FORGET, ""])
    assert differentiated
    assert torch.equal(conditions[:BATCH], asked.expand(BATCH, -1, -1))
    assert torch.equal(conditions[BATCH:], nothing.expand(BATCH, -1, -1))


# --- losses ---------------------------------------------------------------------------------------


def test_the_loss_is_the_alpha_weighted_sum_with_the_model_itself_as_teacher(
    run, pipeline, tmp_path
):
    result = run(method="rl", alpha=0.3, run_dir=tmp_path)
    forget, retain, total = step_loss(pipeline, 0.3)
    record = result.history[0]
    assert record.parts == pytest.approx(
        {"forget": float(forget.detach()), "retain": float(retain.detach())}, rel=1e-4
    )
    assert record.loss == pytest.approx(float(total.detach()), rel=1e-4)
    assert record.grad_norm is None
    assert_same_tensors(moments(tmp_path), scaled(gradients(pipeline.unet, total), 0.1))


@pytest.mark.parametrize("redrawn", [False, True])
def test_the_teacher_sees_the_same_x_t_unless_the_posterior_is_redrawn(redrawn, run, pipeline):
    calls = recorded(pipeline.unet)
    result = run(method="rl", redraw_posterior=redrawn)
    (taught, noisy, conditions), (student, same, asked), _ = calls
    assert (taught, student) == (False, True)
    assert torch.equal(noisy, same) is not redrawn
    embeddings = Components.of(pipeline).embeddings([REPLACEMENT, FORGET])
    assert torch.equal(conditions[0], embeddings[0])
    assert torch.equal(asked[0], embeddings[1])
    expected = step_loss(pipeline, 0.5, redrawn=redrawn)[0]
    assert result.history[0].parts["forget"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_each_image_goes_with_its_own_prompt(run, pipeline):
    prompts = [f"a photo of a {word}" for word in ("sky", "dog", "boat", "sky", "sea")]
    calls = recorded(pipeline.unet)
    run(method="rl", retain_prompts=prompts, batch_size=5)
    data = encoded(pipeline, RETAIN_IMAGES, RETAIN)
    order = NoisyBatches(
        data.latents, 5, Denoising(pipeline.scheduler), torch.device("cpu"), 5, 0, "retain"
    )
    indices = order.sequence()(0).indices.tolist()
    embeddings = Components.of(pipeline).embeddings(prompts)
    assert torch.equal(calls[2][2], embeddings[indices])


def test_the_prompt_is_dropped_in_the_retain_loss_alone(run, pipeline):
    calls = recorded(pipeline.unet)
    run(method="rl", condition_dropout=0.5, batch_size=24)
    asked, taught, retained, nothing = Components.of(pipeline).embeddings(
        [FORGET, REPLACEMENT, RETAIN, ""]
    )
    assert all(torch.equal(condition, taught) for condition in calls[0][2])
    assert all(torch.equal(condition, asked) for condition in calls[1][2])
    dropped = [torch.equal(condition, nothing) for condition in calls[2][2]]
    assert 4 < sum(dropped) < 20
    kept = [c for c, gone in zip(calls[2][2], dropped, strict=True) if not gone]
    assert all(torch.equal(condition, retained) for condition in kept)


def test_gradient_ascent_climbs_the_forget_prompts_loss(run, pipeline, tmp_path):
    run(method="ga", run_dir=tmp_path)
    batch = batches(encoded(pipeline, FORGET_IMAGES, FORGET), pipeline, "forget").sequence()(0)
    loss = (said(pipeline, batch, FORGET) - batch.target).square().mean()
    assert_same_tensors(moments(tmp_path), scaled(gradients(pipeline.unet, loss), -0.1))


# --- trainable sets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "part"), [("xattn", ".attn2."), ("selfattn", ".attn1."), ("to_[qk]", ".to_")]
)
def test_only_the_trainable_set_moves_and_only_its_gradients_are_computed(
    which, part, run, pipeline
):
    computed = []

    def keep(done, model):
        computed.append({n for n, p in model.named_parameters() if p.grad is not None})

    result = run(trainable=which, lr=0.01, on_snapshot=keep, snapshot_every=1)
    assert computed[0] == set()
    assert computed[1] == set(result.mask.names)
    assert all(part in name for name in result.mask.names)
    assert moved(pipeline.unet, result.unet) <= set(result.mask.names)
    assert moved(pipeline.unet, result.unet)
    assert_frozen(pipeline.unet, result.unet, result.mask)
    everything = sum(p.numel() for p in pipeline.unet.parameters())
    assert result.certificate.holds
    assert result.certificate.frozen == everything - result.mask.count


def test_density_counts_the_trainable_weights_by_default(run, pipeline):
    mask = run(trainable="xattn", density=0.25).mask
    sizes = [p.numel() for n, p in pipeline.unet.named_parameters() if "attn2" in n]
    assert mask.count == int(sum(sizes) * 0.25)
    assert mask.numel == sum(sizes)


def test_counted_over_the_model_k_is_of_all_weights_and_only_trainable_ones_move(
    run, pipeline, ranked
):
    result = run(trainable="xattn", count_over="model", density=0.25, lr=0.01)
    assert list(ranked[0]) == [name for name, _ in pipeline.unet.named_parameters()]
    whole = Saliency.from_dict(ranked[0]).mask(0.25)
    assert result.mask.names == [name for name in whole.names if "attn2" in name]
    assert all(torch.equal(result.mask[name], whole[name]) for name in result.mask.names)
    assert moved(pipeline.unet, result.unet) <= set(result.mask.names)


def test_adapter_weights_are_unlearned_by_name_and_the_base_stays(run):
    peft = pytest.importorskip("peft")
    pipeline = text_pipeline()
    pipeline.unet.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    result = run(pipeline, trainable="xattn", lr=0.01)
    assert result.mask.names
    assert all("lora_" in name and "attn2" in name for name in result.mask.names)
    assert moved(pipeline.unet, result.unet) <= set(result.mask.names)
    assert moved(pipeline.unet, result.unet)
    assert result.certificate.holds


def test_a_mask_over_the_whole_model_acts_on_the_trainable_set(run, pipeline):
    whole = Saliency(pipeline.unet).mask(0.5, which="random")
    result = run(mask=whole, trainable="xattn", lr=0.01)
    assert result.mask.names == [name for name in whole.names if "attn2" in name]
    assert_frozen(pipeline.unet, result.unet, result.mask)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.diffusion_model."])
def test_a_given_mask_is_used_whatever_wrapper_named_it(prefix, run):
    plain = run(method="random_mask", trainable="xattn").mask
    named = SaliencyMask(
        {prefix + name: words for name, words in plain.words.items()},
        {prefix + name: shape for name, shape in plain.shapes.items()},
    )
    result = run(mask=named, trainable="xattn")
    assert result.mask == plain
    assert result.certificate.holds


# --- frozen weights, memory, precision ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.1, "ema_decay": 0.9, "preset": "reference"},
        {"gradient_accumulation": 2, "max_grad_norm": 0.1, "method": "random_mask"},
        {"prediction_type": "v_prediction", "gradient_checkpointing": True},
        {"precision": "bf16", "trainable": "noxattn"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_frozen_weights_keep_every_bit_in_the_model_and_its_average(options, run):
    scheduler = ddpm_scheduler(
        prediction_type=options.pop("prediction_type", "epsilon"), steps_offset=1, clip_sample=False
    )
    pipeline = text_pipeline(dropout=options.pop("dropout", 0.0), scheduler=scheduler)
    result = run(pipeline, steps=2, lr=0.01, **options)
    assert_frozen(pipeline.unet, result.unet, result.mask)
    assert result.certificate.holds
    assert moved(pipeline.unet, result.unet)
    original = dict(pipeline.unet.named_parameters())
    for name, average in (result.averaged or {}).items():
        frozen = ~result.mask[name]
        assert same_bytes(average[frozen], original[name][frozen])


def test_gradient_checkpointing_gives_the_same_and_is_off_afterwards(run, tmp_path):
    pipeline = text_pipeline(dropout=0.1)
    results = {}
    for wanted in (False, True):
        folder = tmp_path / str(wanted)
        results[wanted] = run(
            pipeline, gradient_checkpointing=wanted, saliency_clip=1.0, run_dir=folder
        )
    assert results[True].mask == results[False].mask
    assert_same_tensors(moments(tmp_path / "True"), moments(tmp_path / "False"), atol=1e-7)
    assert not results[True].unet.is_gradient_checkpointing
    assert not pipeline.unet.is_gradient_checkpointing


def test_gradient_checkpointing_of_the_user_stays_on(run, pipeline):
    pipeline.unet.enable_gradient_checkpointing()
    result = run(gradient_checkpointing=True)
    assert result.unet.is_gradient_checkpointing
    assert pipeline.unet.is_gradient_checkpointing


# --- the result, and what is left alone -----------------------------------------------------------


@pytest.mark.parametrize("method", ["salun", "random_mask", "rl", "ga"])
def test_the_pipeline_passed_and_torchs_random_state_are_left_alone(method, run):
    pipeline = text_pipeline(dropout=0.1)
    pipeline.unet.mid_block.train()
    pipeline.vae.train()
    pipeline.text_encoder.train()
    untouched = Untouched(*parts_of(pipeline))
    result = run(pipeline, method=method, trainable="xattn")
    untouched.check()
    open_after = [p.requires_grad for p in result.unet.parameters()]
    assert open_after == [p.requires_grad for p in pipeline.unet.parameters()]
    assert all(p.grad is None for p in result.unet.parameters())


def test_the_result_is_a_pipeline_with_the_unlearned_unet_that_saves_as_any_other(run, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = text_pipeline()
    result = run(pipeline, lr=0.01)
    assert type(result.pipeline) is StableDiffusionPipeline
    assert result.pipeline.unet is result.unet is not pipeline.unet
    assert result.pipeline.vae is pipeline.vae
    result.pipeline.save_pretrained(tmp_path / "saved")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert not moved(result.unet, loaded.unet)
    assert loaded.safety_checker is None


def test_components_do_as_well_and_give_the_same_weights(run, pipeline):
    from_pipeline, from_parts = run(), run(Components.of(pipeline))
    assert not moved(from_pipeline.unet, from_parts.unet)
    assert from_parts.pipeline is None


def test_the_second_run_encodes_no_image_again(run, pipeline, monkeypatch, tmp_path):
    first = run(run_dir=tmp_path / "one", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(pipeline.vae, "encode", None)
    again = run(run_dir=tmp_path / "two", cache_dir=tmp_path / "cache")
    assert not moved(first.unet, again.unet)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["checkpoints"]


def test_without_cache_dir_the_run_folder_keeps_the_encodings(run, tmp_path):
    run(run_dir=tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_seconds_add_up(run):
    seconds = run().seconds
    assert set(seconds) == {"encode", "saliency", "select", "train", "total"}
    parts = [value for name, value in seconds.items() if name != "total"]
    assert seconds["total"] == pytest.approx(sum(parts))


# --- bad input ------------------------------------------------------------------------------------


BAD = {
    "forget prompt empty": ({"forget_prompt": " "}, "forget_prompt must say something"),
    "one forget prompt empty": (
        {"forget_prompt": [FORGET] * 5 + [""]},
        "forget_prompt must say something",
    ),
    "same prompts": ({"replacement_prompt": FORGET}, "replacement_prompt must differ"),
    "too few prompts": (
        {"retain_prompts": [RETAIN] * 4},
        r"retain_prompts must be one string, or one per image \(5\), found 4 items",
    ),
    "prompts no strings": ({"forget_prompt": [1] * 6}, "forget_prompt must be one string"),
    "no forget images": ({"forget_images": pictures(0)}, "forget_images holds no images"),
    "no retain images": ({"retain_images": pictures(0)}, "retain_images holds no images"),
    "channels": (
        {"forget_images": FORGET_IMAGES[:, :1]},
        r"forget_images must be a tensor \[n, 3, height, width\].*found \[6, 1, 16, 16\]",
    ),
    "no tensor": ({"retain_images": [1, 2]}, "retain_images must be a tensor.*found list"),
    "size": (
        {"forget_images": FORGET_IMAGES[..., :14]},
        "multiples of 4 pixels.*found 16 x 14",
    ),
    "range": (
        {"forget_images": FORGET_IMAGES.float()},
        r"forget_images must lie in \[-1, 1\]",
    ),
    "alpha": ({"alpha": 0.0}, "alpha must be greater than 0"),
    "trainable": ({"trainable": "attn["}, "trainable must be one of"),
    "count_over": ({"count_over": "all"}, "count_over must be one of"),
    "method": ({"method": "esd"}, "method must be one of"),
    "resume": ({"resume": True}, "resume=True needs run_dir"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words_before_anything_is_changed(case, run, pipeline, tmp_path):
    options, message = BAD[case]
    untouched = Untouched(*parts_of(pipeline))
    folder = {} if case == "resume" else {"run_dir": tmp_path / "run"}
    with pytest.raises(ValueError, match=message):
        run(**folder | options)
    untouched.check()
    assert not (tmp_path / "run").exists()


def test_a_mask_that_does_not_fit_is_refused_before_anything_is_encoded(run, pipeline, tmp_path):
    foreign = SaliencyMask.from_dict({"fc.weight": torch.ones(3, 3, dtype=torch.bool)})
    fitting = Saliency(pipeline.unet).mask(0.5, which="random")
    narrow = run(method="random_mask", trainable="selfattn").mask
    for options, message in (
        ({"mask": foreign}, "does not fit the model"),
        ({"mask": narrow, "trainable": "xattn"}, "does not fit the model.*attn2"),
        ({"mask": fitting, "method": "ga"}, "mask is for the methods salun, random_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            run(run_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_predicting_the_sample_is_refused_before_anything_is_encoded(run, pipeline, tmp_path):
    pipeline.scheduler = ddpm_scheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        run(run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_pipeline_is_refused(run, pipeline):
    with pytest.raises(TypeError, match="must be a StableDiffusionPipeline or Components"):
        run(pipeline.unet)


def test_a_misspelt_setting_is_an_error_that_names_the_right_one(run):
    with pytest.raises(TypeError, match="unknown setting 'trainabel'; did you mean 'trainable'"):
        run(trainabel="xattn")


def test_a_prompt_that_is_cut_is_told_of_once_with_what_is_kept(run, tmp_path):
    for _ in range(2):  # also when the encodings come from the cache
        with pytest.warns(UserWarning, match="tokenizer's limit") as caught:
            run(forget_prompt=LONG, cache_dir=tmp_path)
        cuts = [w for w in caught if "tokenizer's limit" in str(w.message)]
        assert len(cuts) == 1
        assert cuts[0].filename == __file__
        assert repr(" ".join(["cat"] * 14)) in str(cuts[0].message)


def test_the_forget_images_may_have_another_size_than_the_retain_images(run):
    larger = torch.cat([RETAIN_IMAGES, RETAIN_IMAGES], dim=3)
    assert run(retain_images=larger).certificate.holds


def test_a_copy_of_the_result_unlearns_on(run):
    first = run(lr=0.01)
    second = run(copy.deepcopy(first.pipeline), lr=0.01, seed=1)
    assert moved(first.unet, second.unet)


def test_prompts_that_are_the_same_tokens_are_refused(run):
    with pytest.raises(ValueError, match="same tokens"):
        run(forget_prompt="a photo of a cat", replacement_prompt="a photo of a CAT")


def test_a_retain_prompt_that_is_to_be_forgotten_is_refused(run):
    with pytest.raises(ValueError, match="which is to be forgotten"):
        run(retain_prompts=[RETAIN, FORGET, RETAIN, RETAIN, RETAIN])


def test_a_tokenizer_without_a_limit_takes_the_text_encoders(pipeline, run):
    pipeline.tokenizer.model_max_length = int(1e30)
    assert Components.of(pipeline).token_limit == 16
    assert run().history


def test_an_adapter_is_saved_as_an_adapter_and_not_as_a_pipeline_that_cannot_be_loaded(
    pipeline, run, tmp_path
):
    peft = pytest.importorskip("peft")
    from salun_fast.diffusion import pipelines

    pipeline.unet.requires_grad_(False)
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    result = run(trainable="lora_", lr=0.1)
    with pytest.raises(ValueError, match="save_lora_adapter"):
        pipelines.save(result.pipeline, tmp_path / "pipeline")
    result.unet.save_lora_adapter(tmp_path / "adapter")
    again = text_pipeline().unet
    file = "pytorch_lora_weights.safetensors"
    again.load_lora_adapter(tmp_path / "adapter", prefix=None, weight_name=file)
    sample, step = torch.randn(1, 4, 8, 8), torch.tensor([3])
    prompt = torch.randn(1, 16, 8)
    said, loaded = (u.eval()(sample, step, prompt).sample for u in (result.unet, again))
    torch.testing.assert_close(said, loaded)
