"""The demonstration: train, retrain, unlearn by every method, evaluate and report."""

from salun_fast.demo.comparison import DEMOS, demo_settings, run_demo

__all__ = ["DEMOS", "demo_settings", "run_demo"]
