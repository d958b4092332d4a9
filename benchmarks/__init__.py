"""Every claim about speed and memory against named peers, on the same data, in the same run.

One ``bench_*.py`` per claim. ``python -m benchmarks`` (``make bench``) runs them all under
pytest-benchmark and writes tables and plots; ``pytest benchmarks/bench_select.py
--benchmark-enable`` runs one.
"""
