"""Frozen networks that turn images into feature vectors, each with the name it is reported by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_fast._extras import need
from salun_fast.data import ImageSet
from salun_fast.evaluation.accuracy import EVAL_BATCH, outputs
from salun_fast.evaluation.picture_check import check_pictures
from salun_fast.weights import load_weights

INCEPTION_SIDE = 299  # pixels the network was trained on
INCEPTION_BATCH = 32  # 299 x 299 activations are large


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """Images uint8 [n, c, h, w] to the activations that enter the last linear layer: fp32 [n, d]
    on the CPU.

    name: as it stands beside every number that came from it.
    model: run in eval mode without gradients; its training flags are put back.
    mean, std: per channel in units of 0..1, as in :class:`ImageSet`.
    is_inception: the only features whose Fréchet distance may be called FID.
    """

    name: str
    model: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    is_inception: bool = False
    batch_size: int = EVAL_BATCH

    def __call__(self, images: Tensor) -> Tensor:
        check_pictures("images", images)
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        with _captured(self.model) as found:
            outputs(
                self.model,
                ImageSet(images, labels, self.mean, self.std),
                batch_size=self.batch_size,
            )
        return torch.cat(found)


def classifier_features(
    model: nn.Module,
    name: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> FeatureExtractor:
    """Penultimate activations of a classifier: the input of the last nn.Linear of a forward pass.

    mean, std: what the classifier's inputs are normalised by; None leaves 0..1.
    Raises ValueError where the model has no nn.Linear.
    """
    if not _linears(model):
        raise ValueError(
            f"model of the features {name!r} must have an nn.Linear, whose input is the feature "
            f"vector; found none in {type(model).__name__}. Give a classifier with a linear head"
        )
    return FeatureExtractor(
        name,
        model,
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
    )


def inception_features(
    weights_path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The 2,048 features of torchvision's Inception v3 after its last pooling, as used by FID
    (Heusel et al. 2017). Nothing is downloaded.

    weights_path: torchvision's ``inception_v3_google-....pth``, or the same as safetensors.
        Another training of the network gives other distances: compare FIDs of one file only.
    Images of any size are resized bilinearly to 299 x 299; grey ones are repeated to 3 channels.
    """
    path = Path(weights_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights_path {path} is not a file; give torchvision's inception_v3 weights "
            "(inception_v3_google-0cc3c7bd.pth), which are not downloaded here"
        )
    models = need("torchvision.models", "FID", extra="eval")
    network: nn.Module = models.inception_v3(
        weights=None, aux_logits=True, transform_input=False, init_weights=False
    )
    try:
        load_weights(network, path)
    except ValueError as error:
        raise ValueError(
            f"weights_path {path} must hold torchvision's inception_v3 with 1,000 classes: {error}"
        ) from error
    model = _InceptionInput(network).to(device)
    return FeatureExtractor(
        f"Inception v3 ({path.name})", model, is_inception=True, batch_size=INCEPTION_BATCH
    )


class _InceptionInput(nn.Module):
    """Images in 0..1 of any size, resized and scaled as the network's training had them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        colour = images.expand(-1, 3, -1, -1)
        size = (INCEPTION_SIDE, INCEPTION_SIDE)
        resized = F.interpolate(colour, size, mode="bilinear", antialias=True)
        logits: Tensor = self.network(resized * 2.0 - 1.0)
        return logits


@contextmanager
def _captured(model: nn.Module) -> Iterator[list[Tensor]]:
    """What entered the last linear layer called, per forward pass of ``model``."""
    entered: list[Tensor] = []
    per_pass: list[Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered[:] = inputs[:1]

    def keep(*_: object) -> None:
        per_pass.append(_vectors(entered))
        entered.clear()

    hooks = [layer.register_forward_pre_hook(note) for layer in _linears(model)]
    hooks.append(model.register_forward_hook(keep))
    try:
        yield per_pass
    finally:
        for hook in hooks:
            hook.remove()


def _vectors(entered: list[Tensor]) -> Tensor:
    if not entered or entered[0].dim() != 2:
        found = f"its input is {list(entered[0].shape)}" if entered else "none was called"
        raise ValueError(
            f"the last nn.Linear must be called with one vector per image, [n, d]; {found}. "
            "Give a classifier with a linear head"
        )
    return entered[0].float().cpu()


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
