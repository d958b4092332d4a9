"""Pictures that a pipeline generates as its own training data, kept for a resumed run."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from salun_fast import files
from salun_fast.diffusion.components import Components
from salun_fast.diffusion.draws import seed_of
from salun_fast.diffusion_workflow.sampling import Sampling, prompt_pictures
from salun_fast.digests import model_digest

KIND, VERSION = "salun-fast generated pictures", 1


@dataclass(frozen=True)
class Captioned:
    """images: uint8 [n, c, h, w]; prompts: n."""

    images: Tensor
    prompts: list[str]


def generated(pipeline: Any, prompts: Sequence[str], sampling: Sampling, cache: Path) -> Captioned:
    """One picture per prompt, from other seeds than the pictures that are shown.

    Read from the folder ``cache`` where the same pipeline made them before. Pictures that the
    pipeline's safety checker withholds are left out, with a warning; ValueError if none is left.
    """
    sampling = replace(sampling, seed=seed_of(sampling.seed, "training pictures"))
    path = cache / f"pictures-{_key(pipeline, prompts, sampling)}.safetensors"
    if path.is_file():
        tensors, _ = files.load_tensors(path, kind=KIND, version=VERSION)
    else:
        images, withheld = prompt_pictures(pipeline, prompts, sampling)
        tensors = {"images": images, "withheld": withheld}
        cache.mkdir(parents=True, exist_ok=True)
        files.save_tensors(path, tensors, kind=KIND, version=VERSION, facts={})
    return _let_through(tensors["images"], tensors["withheld"], prompts)


def _let_through(images: Tensor, withheld: Tensor, prompts: Sequence[str]) -> Captioned:
    count = int(withheld.sum())
    kept = (~withheld).nonzero().flatten()
    if count:
        told = (
            f"the safety checker withheld {count} of {len(images)} generated pictures, the first "
            f"of {prompts[int(withheld.nonzero()[0])]!r}"
        )
        if not len(kept):
            raise ValueError(f"{told}; give a folder of pictures, forget_images or retain_images")
        warnings.warn(f"{told}; they are left out", stacklevel=2)
    return Captioned(images[kept], [prompts[index] for index in kept.tolist()])


def _key(pipeline: Any, prompts: Sequence[str], sampling: Sampling) -> str:
    """What the pictures are a function of."""
    components = Components.of(pipeline)
    digest = hashlib.sha256()
    for model in (components.unet, components.vae, components.text_encoder):
        digest.update(model_digest(model).encode())
    scheduler = sorted((key, str(value)) for key, value in components.scheduler.config.items())
    facts = (list(prompts), sampling, type(components.scheduler).__name__, scheduler)
    digest.update(repr(facts).encode())
    digest.update(components.tokens(list(dict.fromkeys(prompts))).numpy().tobytes())
    return digest.hexdigest()[:32]
