"""The CLIP score with a tiny CLIP of random weights, built here and saved as a folder."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from torch import nn

from salun_fast.evaluation.clip_score import clip_score

transformers = pytest.importorskip("transformers")
pytest.importorskip("torchvision")  # of transformers' image processors

LIMIT = 12  # tokens, start and end included
WORDS = ("a", "photo", "of", "bag", "coat", "in", "ink")


def tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge, joined = (pieces[0], pieces[1]), pieces[0] + pieces[1]
            if merge not in merges:
                merges.append(merge)
            if joined not in vocabulary:
                vocabulary.append(joined)
            pieces = [joined, *pieces[2:]]
    vocab = {token: index for index, token in enumerate(vocabulary)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LIMIT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    words = tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    small["num_hidden_layers"] = 2
    config = transformers.CLIPConfig(
        text_config=small
        | {
            "vocab_size": len(words),
            "max_position_embeddings": LIMIT,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config=small | {"image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(path)
    resizer = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    transformers.CLIPProcessor(image_processor=resizer, tokenizer=words).save_pretrained(path)
    return path


def pictures(count, seed=0, side=16):
    generator = torch.Generator().manual_seed(seed)
    size = (count, 3, side, side)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def by_hand(folder, images, prompts):
    """Each pair alone through CLIP's own forward pass."""
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        inputs = processor(
            text=[prompt],
            images=[image.permute(1, 2, 0).numpy()],
            return_tensors="pt",
            input_data_format="channels_last",
        )
        with torch.no_grad():
            found = model(**inputs)
        cosine = nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        scores.append(max(100.0 * float(cosine), 0.0))
    return scores


PROMPTS = ["a photo of a bag", "a coat", "a photo of a bag", "a bag in ink"] * 3


def test_it_is_the_mean_of_the_positive_cosines_of_each_image_with_its_own_prompt(folder):
    images = pictures(12)
    scores = by_hand(folder, images, PROMPTS)
    assert len(set(scores)) > 1
    assert clip_score(images, PROMPTS, folder) == pytest.approx(sum(scores) / 12, abs=1e-4)


def test_a_negative_cosine_counts_as_zero(folder):
    images = pictures(12)
    model = transformers.CLIPModel.from_pretrained(folder)
    scores = by_hand(folder, images, PROMPTS)
    assert min(scores) >= 0.0
    with torch.no_grad():
        model.text_projection.weight.neg_()
    flipped = shutil.copytree(folder, folder.with_name("flipped"), dirs_exist_ok=True)
    model.save_pretrained(flipped)
    both = clip_score(images, PROMPTS, folder), clip_score(images, PROMPTS, flipped)
    assert min(both) >= 0.0
    opposite = by_hand(flipped, images, PROMPTS)
    assert all(min(pair) == 0.0 for pair in zip(scores, opposite, strict=True))
    assert both[1] == pytest.approx(sum(opposite) / 12, abs=1e-4)


def test_images_three_pixels_high_are_not_taken_for_channels_last(folder):
    images = pictures(2, side=3)
    expected = sum(by_hand(folder, images, PROMPTS[:2])) / 2
    assert clip_score(images, PROMPTS[:2], folder) == pytest.approx(expected, abs=1e-4)


def test_a_prompt_beyond_the_limit_is_cut_and_said_so(folder):
    long = "a photo of a bag in ink in ink in ink in ink"
    with pytest.warns(UserWarning, match="has 15 tokens and the CLIP model reads 12: it was cut"):
        cut = clip_score(pictures(1), [long], folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cut == clip_score(pictures(1), ["a photo of a bag in ink in ink in"], folder)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (pictures(2), ["a bag"], "one string per image, found 1 prompts for 2 images"),
        (pictures(2), "ab", "one string per image, found a single string"),
        (pictures(2)[:, :1], ["a", "b"], "images must be uint8 \\[n, 3, h, w\\].*repeat"),
    ],
)
def test_images_and_prompts_must_fit(folder, images, prompts, message):
    with pytest.raises(ValueError, match=message):
        clip_score(images, prompts, folder)


def test_a_folder_without_clip_is_refused_and_nothing_is_fetched(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder.*Nothing is downloaded"):
        clip_score(pictures(1), ["a"], "openai/clip-vit-base-patch32")
    with pytest.raises(FileNotFoundError, match="lacks config.json of a CLIP model"):
        clip_score(pictures(1), ["a"], tmp_path)
    other = shutil.copytree(folder, tmp_path / "no_weights")
    (other / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks files of a CLIP model"):
        clip_score(pictures(1), ["a"], other)
    transformers.CLIPTextConfig(hidden_size=16).save_pretrained(tmp_path / "text_only")
    with pytest.raises(ValueError, match="must hold a CLIP model .*found model type"):
        clip_score(pictures(1), ["a"], tmp_path / "text_only")


def test_weights_that_are_missing_are_not_made_up(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(other / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights.*visual_projection.weight"):
        clip_score(pictures(1), ["a"], other)
