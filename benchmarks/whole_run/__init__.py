"""Whole runs, from the saliency to the unlearned model: ``python -m benchmarks.whole_run``."""
