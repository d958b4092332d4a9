"""What the CUDA compiler made of the kernels, and how fast that may be: an estimate, no GPU needed.

``python -m benchmarks.cuda_static`` writes ``benchmarks/results/cuda_static.md``.
"""
