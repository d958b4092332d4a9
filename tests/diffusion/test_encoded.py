"""Latents and prompt embeddings: right, computed once, kept on disk, never trusted blindly."""

import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from salun_fast.diffusion.components import Components
from salun_fast.diffusion.encoded import encode
from tests.conftest import same_bytes
from tests.diffusion.tiny import FORGET, LONG, RETAIN, Untouched, pictures, text_pipeline

PROMPTS = [FORGET, RETAIN, FORGET]


@pytest.fixture
def pipeline():
    return text_pipeline()


@pytest.fixture
def encodings(pipeline, monkeypatch):
    """How often the VAE was asked."""
    calls = []
    encode_images = pipeline.vae.encode

    def counted(images):
        calls.append(len(images))
        return encode_images(images)

    monkeypatch.setattr(pipeline.vae, "encode", counted)
    return calls


def same(one, other):
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(same_bytes(a, b) for a, b in pairs)


def test_latents_are_the_vaes_scaled_as_the_unet_takes_them(pipeline):
    images = pictures(3)
    found = encode(Components.of(pipeline), images, PROMPTS, None)
    with torch.no_grad():
        posterior = pipeline.vae.encode(images.float() / 127.5 - 1).latent_dist
    factor = pipeline.vae.config.scaling_factor
    torch.testing.assert_close(found.mean, posterior.mean * factor)
    torch.testing.assert_close(found.std, posterior.std * factor)
    indices = torch.tensor([2, 0])
    drawn = found.latents(indices, torch.Generator().manual_seed(4))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(drawn, found.mean[indices] + found.std[indices] * noise)


def test_symmetric_floats_and_bytes_encode_alike(pipeline):
    images = pictures(2)
    one, other = (
        encode(Components.of(pipeline), given, [FORGET, RETAIN], None)
        for given in (images, images.float() / 127.5 - 1)
    )
    assert same(one, other)


def test_a_shift_of_the_latents_is_taken_off_the_mean_alone():
    pipeline = text_pipeline()
    images = pictures(1)
    plain = encode(Components.of(pipeline), images, [FORGET], None)
    pipeline.vae.register_to_config(shift_factor=0.25)
    shifted = encode(Components.of(pipeline), images, [FORGET], None)
    torch.testing.assert_close(shifted.mean, plain.mean - 0.25 * pipeline.vae.config.scaling_factor)
    assert same_bytes(shifted.std, plain.std)


def test_embeddings_are_those_of_the_pipeline_one_per_distinct_prompt(pipeline):
    found = encode(Components.of(pipeline), pictures(3), PROMPTS, None)
    assert len(found.embeddings) == 2
    indices = torch.tensor([0, 1, 2])
    for prompt, ours in zip(PROMPTS, found.conditions(indices), strict=True):
        theirs, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)
        torch.testing.assert_close(ours, theirs[0])


def test_encoding_leaves_models_modes_and_random_state_alone(pipeline):
    pipeline.vae.train()
    next(pipeline.text_encoder.children()).train()  # a part in another mode than the whole
    untouched = Untouched(pipeline.vae, pipeline.text_encoder)
    encode(Components.of(pipeline), pictures(2), [FORGET, RETAIN], None)
    untouched.check()


def test_the_second_run_reads_the_file(pipeline, encodings, tmp_path):
    images, folder = pictures(3), tmp_path / "deep" / "cache"
    first = encode(Components.of(pipeline), images, PROMPTS, folder)
    assert encodings == [3]
    second = encode(Components.of(pipeline), images, PROMPTS, folder)
    assert encodings == [3]
    assert same(first, second)
    assert first.digest == second.digest
    assert len(list(folder.iterdir())) == 1


def changed_prompt(pipeline):
    return pictures(3), [FORGET, RETAIN, "a cat"]


def changed_order(pipeline):
    return pictures(3), [RETAIN, FORGET, FORGET]


def changed_image(pipeline):
    images = pictures(3)
    images[1, 0, 3, 3] ^= 1
    return images, PROMPTS


def changed_dtype(pipeline):
    return pictures(3).float() / 127.5 - 1, PROMPTS


def changed_vae_weight(pipeline):
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.bias[0] += 1e-4
    return pictures(3), PROMPTS


def changed_text_encoder(pipeline):
    with torch.no_grad():
        next(pipeline.text_encoder.parameters()).view(-1)[0] += 1e-4
    return pictures(3), PROMPTS


def changed_scale(pipeline):
    pipeline.vae.register_to_config(scaling_factor=0.7)
    return pictures(3), PROMPTS


def changed_shift(pipeline):
    pipeline.vae.register_to_config(shift_factor=0.1)
    return pictures(3), PROMPTS


CHANGES = [
    changed_prompt,
    changed_order,
    changed_image,
    changed_dtype,
    changed_vae_weight,
    changed_text_encoder,
    changed_scale,
    changed_shift,
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_they_depend_on_gives_another_file(change, pipeline, encodings, tmp_path):
    encode(Components.of(pipeline), pictures(3), PROMPTS, tmp_path)
    images, prompts = change(pipeline)
    encode(Components.of(pipeline), images, prompts, tmp_path)
    assert encodings == [3, 3]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "altered", "foreign", "empty"])
def test_a_damaged_file_is_replaced_with_a_warning(damage, pipeline, encodings, tmp_path):
    first = encode(Components.of(pipeline), pictures(3), PROMPTS, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "altered": content[:-1] + bytes([content[-1] ^ 1]),
            "foreign": b"no tensors here",
            "empty": b"",
        }[damage]
    )
    with pytest.warns(UserWarning, match="encoding anew, as the cache is damaged") as caught:
        again = encode(Components.of(pipeline), pictures(3), PROMPTS, tmp_path)
    assert str(path) in str(caught[0].message)
    assert same(first, again)
    assert same(first, encode(Components.of(pipeline), pictures(3), PROMPTS, tmp_path))
    assert encodings == [3, 3]


def test_a_long_prompt_is_cut_where_the_tokenizer_cuts_it(pipeline):
    components = Components.of(pipeline)
    (ids,) = components.tokens([LONG])
    assert ids.shape == (16,)
    assert ids.tolist() == pipeline.tokenizer(LONG, truncation=True, max_length=16).input_ids


def test_each_long_prompt_is_told_of_once_with_what_is_kept(pipeline):
    components = Components.of(pipeline)
    other = LONG + " dog"
    with pytest.warns(UserWarning, match="tokens") as caught:
        components.warn_of_cuts([LONG, FORGET, LONG, other, ""])
    told = [str(warning.message) for warning in caught]
    assert len(told) == 2
    kept = " ".join(["cat"] * 14)
    assert "has 32 tokens, 16 is the tokenizer's limit (start and end included)" in told[0]
    assert told[0].endswith(f"it was cut to {kept!r}")
    assert repr(other) in told[1]


def test_a_prompt_of_just_the_limit_is_not_told_of(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Components.of(pipeline).warn_of_cuts([" ".join(["cat"] * 14), FORGET, ""])


def test_components_name_what_is_missing(pipeline):
    with pytest.raises(TypeError, match="found UNet2DConditionModel without unet, vae"):
        Components.of(pipeline.unet)
    components = Components.of(pipeline)
    assert Components.of(components) is components


def test_parts_of_different_pipelines_are_told_apart(pipeline):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    components = Components.of(pipeline)
    components.check_fit()
    config = dict(pipeline.unet.config)
    unet = UNet2DConditionModel.from_config(config | {"cross_attention_dim": 6})
    with pytest.raises(ValueError, match="reads prompts of width 6, the text encoder writes 8"):
        replace(components, unet=unet).check_fit()
    unet = UNet2DConditionModel.from_config(config | {"in_channels": 9})
    with pytest.raises(ValueError, match="takes 9 channels, the VAE makes 4"):
        replace(components, unet=unet).check_fit()
    vae = AutoencoderKL.from_config(dict(pipeline.vae.config) | {"latent_channels": 3})
    with pytest.raises(ValueError, match="takes 4 channels, the VAE makes 3"):
        replace(components, vae=vae).check_fit()
