"""Membership inference: does the unlearned model still treat forget images as seen ones?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MembershipResult:
    """score: percent of the forget images called non-member; sizes: images used of each kind."""

    score: float
    members: int
    non_members: int
    forget: int

    @property
    def sizes(self) -> dict[str, int]:
        return {"members": self.members, "non_members": self.non_members, "forget": self.forget}


def membership_inference(
    members: Tensor,
    non_members: Tensor,
    forget: Tensor,
    *,
    max_members: int | None = None,
    seed: int = 0,
) -> MembershipResult:
    """MIA as in SalUn: share of D_f that a classifier of one feature calls non-member.

    members, non_members, forget: [n] softmax probabilities of the true label, of retain images,
    test images and forget images, all from the unlearned model. An RBF support vector machine
    (C=3, gamma "auto") is fitted on as many members as non-members: the smaller of both counts,
    at most ``max_members`` each, drawn by ``seed`` (the fit is quadratic in that number).
    All forget images are judged.
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(
            "membership inference needs scikit-learn: pip install 'salun-fast[eval]'"
        ) from error
    size = min(len(members), len(non_members))
    if max_members is not None:
        size = min(size, max_members)
    if size == 0 or len(forget) == 0:
        raise ValueError(
            "membership inference needs retain, test and forget images, found "
            f"{len(members)}, {len(non_members)} and {len(forget)}"
        )
    generator = torch.Generator().manual_seed(seed)
    members, non_members = _draw(members, size, generator), _draw(non_members, size, generator)
    features = torch.cat([members, non_members])[:, None].double().numpy()
    kind = torch.cat([torch.ones(size), torch.zeros(size)]).numpy()
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(features, kind)
    judged = torch.from_numpy(attack.predict(forget[:, None].double().numpy()))
    return MembershipResult(100.0 * float((judged == 0).double().mean()), size, size, len(forget))


def _draw(values: Tensor, size: int, generator: torch.Generator) -> Tensor:
    if size == len(values):
        return values
    return values[torch.randperm(len(values), generator=generator)[:size]]


def entropy(probabilities: Tensor) -> Tensor:
    """-Σ p log p per row of [n, C], natural logarithm; 0 for a one-hot row, log C for uniform."""
    per_row: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return per_row


def modified_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """-(1 - p_y) log p_y - Σ_{i≠y} p_i log(1 - p_i) per row (Song & Mittal 2021, eq. 2).

    probabilities: [n, C]; labels: int64 [n]. 0 when all mass is on the true label, infinite when
    all is on another.
    """
    chosen = torch.nn.functional.one_hot(labels, probabilities.shape[1]).bool()
    weight = torch.where(chosen, 1 - probabilities, probabilities)
    inside = torch.where(chosen, probabilities, 1 - probabilities)
    per_row: Tensor = -torch.special.xlogy(weight, inside).sum(dim=1)
    return per_row
