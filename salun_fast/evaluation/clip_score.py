"""CLIP score: how well images fit the prompts they were made from (Hessel et al. 2021)."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_fast._extras import need
from salun_fast.evaluation.picture_check import check_pictures

PURPOSE = "the CLIP score"
BATCH = 64
_REMEDY = "copy the whole folder, or write it with save_pretrained of model and processor"


@torch.no_grad()
def clip_score(
    images: Tensor,
    prompts: Sequence[str],
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
) -> float:
    """The mean over images of max(100 cos(image, prompt), 0): 0..100, for real CLIPs about 20..35.

    images: uint8 [n, 3, h, w]. prompts: one per image; one longer than the text encoder's limit is
        cut, with a warning, as is usual for this score.
    path: a folder with a CLIPModel and its processor as ``save_pretrained`` writes them; nothing
        is downloaded. Scores of different CLIPs cannot be compared.
    """
    check_pictures("images", images, channels=(3,))
    if isinstance(prompts, str) or len(prompts) != len(images):
        found = "a single string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(
            f"prompts must be one string per image, found {found} for {len(images)} images"
        )
    model, processor = _load(Path(path), torch.device(device))
    places = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    texts = torch.cat(list(_texts(model, processor, list(places))))  # each text once
    pictures = torch.cat(list(_pictures(model, processor, images)))
    asked = torch.tensor([places[prompt] for prompt in prompts])
    cosines = F.cosine_similarity(pictures, texts[asked].to(pictures.dtype), dim=1)
    return float((100.0 * cosines).clamp(min=0.0).mean())


def _load(path: Path, device: torch.device) -> tuple[Any, Any]:
    """Model and processor, or an error that says what the folder lacks."""
    _check_folder(path)
    transformers = need("transformers", PURPOSE, extra="diffusion")
    try:
        model, report = transformers.CLIPModel.from_pretrained(
            path, local_files_only=True, output_loading_info=True
        )
        processor = transformers.CLIPProcessor.from_pretrained(path, local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"path {path} lacks files of a CLIP model or its processor ({error}); {_REMEDY}"
        ) from error
    if report["missing_keys"]:  # transformers would fill them with random values
        raise ValueError(
            f"path {path} lacks {len(report['missing_keys'])} weights of its CLIP model, "
            f"{min(report['missing_keys'])!r} among them; {_REMEDY}"
        )
    return model.float().eval().to(device), processor


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(
            f"path {path} is not a folder; give one with a CLIP model, e.g. a local copy of "
            "openai/clip-vit-base-patch32. Nothing is downloaded"
        )
    config = path / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"path {path} lacks config.json of a CLIP model; {_REMEDY}")
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if kind != "clip":
        raise ValueError(
            f"path {path} must hold a CLIP model (text and images), found model type {kind!r}; "
            f"{_REMEDY}"
        )


def _texts(model: Any, processor: Any, prompts: list[str]) -> Iterator[Tensor]:
    """Embeddings, fp32 [b, d] on the CPU."""
    limit = model.config.text_config.max_position_embeddings
    _warn_of_cuts(processor.tokenizer, prompts, limit)
    for start in range(0, len(prompts), BATCH):
        tokens = processor.tokenizer(
            prompts[start : start + BATCH],
            padding=True, truncation=True, max_length=limit, return_tensors="pt",
        ).to(model.device)  # fmt: skip
        said = model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        yield model.text_projection(said.pooler_output).cpu()


def _pictures(model: Any, processor: Any, images: Tensor) -> Iterator[Tensor]:
    """Embeddings, fp32 [b, d] on the CPU."""
    for part in torch.split(images, BATCH):
        pixels = processor.image_processor(
            list(part.cpu()), return_tensors="pt", input_data_format="channels_first"
        )["pixel_values"]
        seen = model.vision_model(pixel_values=pixels.to(model.device))
        yield model.visual_projection(seen.pooler_output).cpu()


def _warn_of_cuts(tokenizer: Any, prompts: list[str], limit: int) -> None:
    lengths = [len(ids) for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > limit:
            warnings.warn(
                f"prompt {prompt!r} has {length} tokens and the CLIP model reads {limit}: it was "
                "cut for the CLIP score",
                stacklevel=4,
            )
