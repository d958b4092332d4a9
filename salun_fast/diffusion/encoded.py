"""Images and prompts as the UNet sees them, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from salun_fast import files
from salun_fast.diffusion.components import Components
from salun_fast.digests import model_digest

KIND, VERSION = "salun-fast encodings", 1


@dataclass(frozen=True)
class Encoded:
    """mean, std: of the images' latents [n, c, h, w]. embeddings: of the distinct prompts
    [m, length, width]. prompt_of: int64 [n], each image's prompt among them. All on the CPU."""

    mean: Tensor
    std: Tensor
    embeddings: Tensor
    prompt_of: Tensor

    def __len__(self) -> int:
        return len(self.prompt_of)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over all of it."""
        digest = hashlib.sha256()
        for tensor in vars(self).values():
            digest.update(repr((tensor.shape, tensor.dtype)).encode())
            digest.update(files.bytes_of(tensor))
        return digest.hexdigest()

    def latents(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from the posterior of these images."""
        mean, std = self.mean[indices], self.std[indices]
        drawn: Tensor = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        return drawn

    def conditions(self, indices: Tensor) -> Tensor:
        """Prompt embeddings of these images, [b, length, width]."""
        return self.embeddings[self.prompt_of[indices]]


def encode(
    components: Components, images: Tensor, prompts: Sequence[str], cache: Path | None
) -> Encoded:
    """Latents of the images (uint8 or in [-1, 1]) and embeddings of their prompts, one per image.

    With ``cache``, a folder, they are read from there when the same models, images and prompts
    were encoded before, and written there otherwise. A damaged file is replaced, with a warning.
    """
    if cache is None:
        return _encoded(components, images, prompts)
    path = cache / f"{_key(components, images, prompts)}.safetensors"
    kept = _kept(path)
    if kept is not None:
        return kept
    made = _encoded(components, images, prompts)
    cache.mkdir(parents=True, exist_ok=True)
    files.save_tensors(path, vars(made), kind=KIND, version=VERSION, facts={})
    return made


def _kept(path: Path) -> Encoded | None:
    """What an earlier run left; None where there is nothing, or nothing whole."""
    if not path.is_file():
        return None
    try:
        tensors, _ = files.load_tensors(path, kind=KIND, version=VERSION)
    except files.FileFormatError as error:
        warnings.warn(f"encoding anew, as the cache is damaged: {error}", stacklevel=4)
        return None
    return Encoded(**tensors)


def _encoded(components: Components, images: Tensor, prompts: Sequence[str]) -> Encoded:
    distinct = list(dict.fromkeys(prompts))
    mean, std = components.posteriors(images)
    return Encoded(
        mean,
        std,
        components.embeddings(distinct),
        torch.tensor([distinct.index(prompt) for prompt in prompts], dtype=torch.int64),
    )


def _key(components: Components, images: Tensor, prompts: Sequence[str]) -> str:
    """What the encodings are a function of."""
    digest = hashlib.sha256()
    for model in (components.vae, components.text_encoder):
        digest.update(model_digest(model).encode())
    scaling = [components.vae.config.get(key) for key in ("scaling_factor", "shift_factor")]
    digest.update(repr((scaling, list(prompts))).encode())
    digest.update(components.tokens(list(dict.fromkeys(prompts))).numpy().tobytes())
    digest.update(repr((images.shape, images.dtype)).encode())
    digest.update(files.bytes_of(images))
    return digest.hexdigest()[:32]
