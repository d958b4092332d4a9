"""Whole methods: train a classifier, make it forget."""

from salun_fast.methods.classifier import unlearn_classifier
from salun_fast.methods.result import EpochRecord, TrainResult, UnlearnResult
from salun_fast.methods.settings import METHODS, PRESETS, ClassifierSettings, TrainSettings
from salun_fast.methods.train import train_classifier

__all__ = [
    "METHODS",
    "PRESETS",
    "ClassifierSettings",
    "EpochRecord",
    "TrainResult",
    "TrainSettings",
    "UnlearnResult",
    "train_classifier",
    "unlearn_classifier",
]
