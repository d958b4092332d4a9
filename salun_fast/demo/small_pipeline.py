"""A StableDiffusionPipeline of Stable Diffusion 1.x's build, small enough for one processor core.

Everything is made from configs: nothing is downloaded. Weight and module names are those of the
big pipeline (``attn1``, ``attn2``, ``to_q``, ...), so whatever works on one works on the other.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from salun_fast._extras import need

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

PURPOSE = "the small text-to-image pipeline"
MAX_TOKENS = 16  # a prompt's limit, its begin and end tokens included
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # CLIP marks the last part of a word

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 4  # three VAE levels: 32 x 32 pixels are 8 x 8 latents
TEXT_WIDTH = 64

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    # Ho et al. 2020: ends much nearer to pure noise than Stable Diffusion's scaled_linear.
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": False,  # StableDiffusionPipeline resets anything else, with a warning
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_pipeline(captions: Iterable[str], *, size: int = 32) -> StableDiffusionPipeline:
    """An untrained pipeline for pictures of ``size`` x ``size`` whose captions are one token a
    word; weights are drawn from torch's default generator.

    Any other prompt works too, in more tokens. No safety checker: there is nothing to check.
    """
    if size < 1 or size % 8:
        raise ValueError(f"size must be a multiple of 8 pixels, found {size}")
    diffusers = need("diffusers", PURPOSE, extra="diffusion")
    tokenizer = build_tokenizer(captions)
    pipeline: StableDiffusionPipeline = diffusers.StableDiffusionPipeline(
        vae=_vae(diffusers, size),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(diffusers, size // PIXELS_PER_LATENT),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned from ``captions``: each of their words is one
    token, every other text is spelled in bytes."""
    tokenizers = need("tokenizers", PURPOSE, extra="diffusion")
    transformers = need("transformers", PURPOSE, extra="diffusion")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(_words(captions))
    symbols = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    symbols += ["".join(pair) for pair in merges]
    symbols += [BEGIN, END]
    tokenizer: CLIPTokenizer = transformers.CLIPTokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
    return tokenizer


def _words(captions: Iterable[str]) -> list[str]:
    """The distinct words, as CLIP cuts captions: runs of letters, and what stands between."""
    return sorted({w for c in captions for w in re.findall(r"[a-z]+|[^\sa-z]+", c.lower())})


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) until each word is one symbol; ties between
    equally frequent pairs go to the first in alphabetical order."""
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in itertools.pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    done: list[str] = []
    for symbol in word:
        if done and (done[-1], symbol) == pair:
            done[-1] += symbol
        else:
            done.append(symbol)
    return done


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    transformers = need("transformers", PURPOSE, extra="diffusion")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: CLIPTextModel = transformers.CLIPTextModel(config)
    return model.eval()


def _vae(diffusers: Any, size: int) -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    ).eval()


def _unet(diffusers: Any, latent_size: int) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    ).eval()
