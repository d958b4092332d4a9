"""salun-fast: weight saliency, exact masks and masked optimizer steps for machine unlearning.

The method is SalUn (Fan et al., ICLR 2024, arXiv 2310.12508). Whole methods import lazily, so
that ``import salun_fast`` costs little on top of torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from salun_fast import ops
from salun_fast.mask import SaliencyMask
from salun_fast.optimizer import SalUnOptimizer
from salun_fast.saliency import Saliency

if TYPE_CHECKING:
    from salun_fast.diffusion.class_pipeline import ClassConditionalPipeline
    from salun_fast.diffusion.components import Components
    from salun_fast.methods import unlearn_classifier
    from salun_fast.methods.concept import unlearn_concept
    from salun_fast.methods.ddpm import train_ddpm, unlearn_ddpm
    from salun_fast.patch import UnlearningPatch

__version__ = version("salun-fast")
__all__ = [
    "ClassConditionalPipeline",
    "Components",
    "SalUnOptimizer",
    "Saliency",
    "SaliencyMask",
    "UnlearningPatch",
    "ops",
    "train_ddpm",
    "unlearn_classifier",
    "unlearn_concept",
    "unlearn_ddpm",
]

_LAZY = {
    "ClassConditionalPipeline": "salun_fast.diffusion.class_pipeline",
    "Components": "salun_fast.diffusion.components",
    "UnlearningPatch": "salun_fast.patch",
    "train_ddpm": "salun_fast.methods.ddpm",
    "unlearn_classifier": "salun_fast.methods",
    "unlearn_concept": "salun_fast.methods.concept",
    "unlearn_ddpm": "salun_fast.methods.ddpm",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'salun_fast' has no attribute {name!r}")
