"""Has the model forgotten, and what did it cost: accuracies, membership inference, gaps, proof."""

from salun_fast.evaluation.accuracy import Outputs, accuracy, outputs
from salun_fast.evaluation.certificate import FreezeCertificate, FrozenWeights
from salun_fast.evaluation.gap import METRICS, average_gap, gaps
from salun_fast.evaluation.membership import (
    MembershipResult,
    entropy,
    membership_inference,
    modified_entropy,
)
from salun_fast.evaluation.metrics import ClassifierMetrics, evaluate_classifier
from salun_fast.evaluation.resources import PeakMemory

__all__ = [
    "METRICS",
    "ClassifierMetrics",
    "FreezeCertificate",
    "FrozenWeights",
    "MembershipResult",
    "Outputs",
    "PeakMemory",
    "accuracy",
    "average_gap",
    "entropy",
    "evaluate_classifier",
    "gaps",
    "membership_inference",
    "modified_entropy",
    "outputs",
]
