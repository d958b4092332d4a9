"""UA, RA, TA and MIA of an unlearned classifier (SalUn, section 5)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from salun_fast.data import ImageSet, as_image_set
from salun_fast.data.images import Images
from salun_fast.evaluation.accuracy import outputs
from salun_fast.evaluation.membership import membership_inference


@dataclass(frozen=True)
class ClassifierMetrics:
    """Percent. Closeness to a retrained model is good, not height.

    ua: 100 - accuracy on the forget set. ra: accuracy on the retain set. ta: accuracy on the test
    set, class-wise without the forgotten class. mia: share of the forget set that the attack of
    ``membership.py`` calls non-member. mia_sample_sizes: images the attack used of each kind;
    sizes: images of each set.
    """

    ua: float
    ra: float
    ta: float
    mia: float
    mia_sample_sizes: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_classifier(
    model: nn.Module,
    *,
    forget: Images,
    retain: Images,
    test: Images,
    forget_class: int | None = None,
    seed: int = 0,
    max_members: int | None = None,
) -> ClassifierMetrics:
    """Measure a model in eval mode; nothing about it changes.

    forget_class: set in class-wise unlearning: test images of that class are left out, of TA and
    of the attack's non-members. max_members: cap on the images of each kind that the attack is
    fitted on (its time is quadratic in them), drawn by ``seed``; the sizes used are reported.
    """
    sets = {
        name: as_image_set(data, name)
        for name, data in (("forget", forget), ("retain", retain), ("test", test))
    }
    if forget_class is not None:
        sets["test"] = _without(sets["test"], forget_class)
    for name, images in sets.items():
        if len(images) == 0:
            raise ValueError(f"{name} holds no images; evaluation needs all three sets")
    said = {name: outputs(model, images) for name, images in sets.items()}
    attack = membership_inference(
        said["retain"].confidence,
        said["test"].confidence,
        said["forget"].confidence,
        max_members=max_members,
        seed=seed,
    )
    return ClassifierMetrics(
        ua=100.0 - said["forget"].accuracy,
        ra=said["retain"].accuracy,
        ta=said["test"].accuracy,
        mia=attack.score,
        mia_sample_sizes=attack.sizes,
        sizes={name: len(images) for name, images in sets.items()},
    )


def _without(data: ImageSet, forget_class: int) -> ImageSet:
    return data.subset((data.labels != forget_class).nonzero().flatten())
