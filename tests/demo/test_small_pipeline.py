"""The small text-to-image pipeline: it is diffusers' own, trains repeatably, saves and loads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from salun_fast.data import load_images
from salun_fast.demo import concept_weights
from salun_fast.demo.captioned import STYLES, captioned, prompt
from salun_fast.demo.concept_weights import load_concept, train_concept_weights
from salun_fast.demo.drawing import drawn
from salun_fast.demo.small_pipeline import (
    MAX_TOKENS,
    build_pipeline,
    build_tokenizer,
)
from salun_fast.demo.train_pipeline import PipelineTraining, encode, train_pipeline
from salun_fast.diffusion import pipelines

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

BRIEF = PipelineTraining(vae_steps=3, vae_batch=4, steps=3, rounds=1, batch=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures():
    return captioned(load_images("digits")).subset(torch.arange(64))


@pytest.fixture(scope="module")
def pipeline(pictures):
    return train_pipeline(pictures, BRIEF, progress=False)


def captions(words):
    return [prompt(word, style) for word in words for style in STYLES]


def weights_of(pipeline):
    parts = (pipeline.vae, pipeline.unet, pipeline.text_encoder)
    return [value for part in parts for value in part.state_dict().values()]


def test_each_word_of_a_caption_is_one_token_and_captions_fit_the_limit():
    words = ("t-shirt", "trousers", "boot", "shirt", "eight")
    tokenizer = build_tokenizer(captions(words))
    assert tokenizer.tokenize("an inverted photo of a boot") == [
        f"{word}</w>" for word in ("an", "inverted", "photo", "of", "a", "boot")
    ]
    assert tokenizer.model_max_length == MAX_TOKENS
    assert all(len(tokenizer(c).input_ids) <= MAX_TOKENS for c in captions(words))


def test_any_text_can_be_tokenised_without_unknown_tokens():
    tokenizer = build_tokenizer(["a photo of a boot"])
    ids = tokenizer("Ein Schuh, 漢字 & 12!", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(
        tokenizer("a PHOTO of  a boot").input_ids, skip_special_tokens=True
    ) == ("a photo of a boot")


def test_a_long_prompt_is_cut_to_the_limit_not_refused(pipeline):
    long = "a photo of " + "a very " * 20 + "red seven"
    images = pipeline([long], num_inference_steps=1, output_type="pt").images
    assert images.shape == (1, 3, 32, 32)


def test_module_names_are_those_of_stable_diffusion(pipeline):
    names = [name for name, _ in pipeline.unet.named_parameters()]
    for part in ("attn1.to_q", "attn2.to_k", "ff.net"):
        assert any(part in name for name in names)
    assert pipeline.safety_checker is None
    assert pipeline.vae_scale_factor == 4


def test_training_is_repeatable_bit_for_bit_and_leaves_torch_s_generator_alone(pictures, pipeline):
    state = torch.get_rng_state()
    again = train_pipeline(pictures, BRIEF, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(weights_of(pipeline), weights_of(again), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert pipeline.vae.config.scaling_factor == again.vae.config.scaling_factor


def test_another_seed_gives_other_weights(pictures, pipeline):
    other = train_pipeline(pictures, BRIEF, seed=1, progress=False)
    pairs = zip(weights_of(pipeline), weights_of(other), strict=True)
    assert any(not torch.equal(left, right) for left, right in pairs)


def test_a_trained_pipeline_is_in_eval_mode_and_its_latents_have_unit_spread(pictures, pipeline):
    parts = (pipeline.vae, pipeline.unet, pipeline.text_encoder)
    assert not any(part.training for part in parts)
    assert all(weight.requires_grad for part in parts for weight in part.parameters())
    assert float(encode(pipeline, pictures.images).std()) == pytest.approx(1.0, abs=1e-3)


def test_a_saved_pipeline_draws_the_same_pictures_when_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = pipelines.load(tmp_path, CPU)
    words = ("zero", "one")
    assert torch.equal(drawn(loaded, words, steps=2).images, drawn(pipeline, words, steps=2).images)
    assert loaded.tokenizer(captions(words)).input_ids == (
        pipeline.tokenizer(captions(words)).input_ids
    )


def test_saving_in_half_precision_leaves_the_pipeline_alone_and_loads_in_fp32(pipeline, tmp_path):
    before = [value.clone() for value in weights_of(pipeline)]
    pipelines.save_half(pipeline, tmp_path / "half")
    assert all(map(torch.equal, before, weights_of(pipeline)))
    loaded = weights_of(pipelines.load(tmp_path / "half", CPU))
    kept = zip(before, loaded, strict=True)
    assert all(torch.equal(own.half().to(own.dtype), value) for own, value in kept)
    assert {value.dtype for value in loaded if value.is_floating_point()} == {torch.float32}


def test_drawn_pictures_start_from_the_same_noise_for_every_caption(pipeline):
    pictures = drawn(pipeline, ("zero", "one"), per_caption=2, guidance_scale=1.0, steps=1)
    assert pictures.prompts[::2] == captions(("zero", "one"))
    alone = drawn(pipeline, ("zero",), per_caption=2, guidance_scale=1.0, steps=1)
    difference = pictures.images[:8].int() - alone.images.int()
    assert int(difference.abs().max()) <= 1


def test_the_whole_way_from_data_to_the_shipped_folder(tmp_path, monkeypatch):
    whole = load_images("digits")
    few = replace(whole, train=whole.train.head(128, seed=0), test=whole.test.head(32, seed=0))
    monkeypatch.setattr(concept_weights, "load_images", lambda name, **_: few)
    folder = tmp_path / "concept"
    facts = train_concept_weights(
        folder, data="digits", settings=BRIEF, judge_epochs=1, per_caption=1, progress=False
    )
    assert json.loads((folder / "facts.json").read_text()) == facts
    assert facts["judged_pictures"] == 40
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3.6e6
    pipeline, judges, _ = load_concept(folder)
    objects, styles = judges.verdict(drawn(pipeline, ("zero",), steps=1).images)
    assert objects.shape == styles.shape == (4,)


def test_bad_input_is_named(pictures, tmp_path):
    with pytest.raises(ValueError, match="prompt_dropout must be in .0, 1., found 1.5"):
        PipelineTraining(prompt_dropout=1.5)
    with pytest.raises(ValueError, match="steps must be at least 1, found 0"):
        PipelineTraining(steps=0)
    with pytest.raises(ValueError, match="pictures must hold at least one picture"):
        train_pipeline(pictures.subset(torch.arange(0)), BRIEF)
    with pytest.raises(ValueError, match="size must be a multiple of 8 pixels, found 30"):
        build_pipeline(["a photo"], size=30)
    with pytest.raises(FileNotFoundError, match="holds no pipeline"):
        pipelines.found_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="demo concept --train"):
        load_concept(tmp_path)
