"""What is kept of a run, as plain JSON values: costs, mask, certificate, predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from salun_fast.data import ImageSet
from salun_fast.evaluation import outputs
from salun_fast.methods import TrainResult, UnlearnResult
from salun_fast.methods.diffusion import DiffusionResult

EXAMPLES = 24  # forget images whose predictions are kept for the report


def costs(result: TrainResult) -> dict[str, Any]:
    """Seconds, peak memory, settings and epochs of a run."""
    return {
        "seconds": result.seconds,
        "peak_memory_mb": result.peak_memory_mb,
        "settings": vars(result.settings) | {"milestones": list(result.settings.milestones)},
        "history": [epoch.as_dict() for epoch in result.history],
    }


def proof(result: UnlearnResult | DiffusionResult) -> dict[str, Any]:
    """Facts about the mask and the freeze certificate; None for methods without a mask."""
    mask, certificate = result.mask, result.certificate
    if mask is None or certificate is None:
        return {"mask": None, "certificate": None}
    return {
        "mask": {
            "count": mask.count,
            "numel": mask.numel,
            "density": mask.density,
            "fingerprint": mask.fingerprint,
            "layers": mask.layer_densities(),
        },
        "certificate": certificate.as_dict(),
    }


def examples(model: nn.Module, forget: ImageSet, indices: Tensor) -> dict[str, list[int]]:
    """Predictions on the first forget images; indices: of all forget images, int64 [n]."""
    first = forget.subset(torch.arange(min(EXAMPLES, len(forget))))
    said = outputs(model, first)
    return {
        "indices": indices[:EXAMPLES].tolist(),
        "labels": said.labels.tolist(),
        "predicted": said.predicted.tolist(),
    }
