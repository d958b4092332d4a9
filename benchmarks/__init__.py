"""Speed of every op against named peers, on the same data, in the same run.

``python -m benchmarks`` prints and writes the table; ``pytest benchmarks --benchmark-enable`` times
ours with pytest-benchmark, at ``--numel`` weights.
"""
