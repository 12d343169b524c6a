"""pyroae on a CUDA device: the same numbers as on a CPU, and how fast.

`python -m benchmarks.gpu`.
"""
