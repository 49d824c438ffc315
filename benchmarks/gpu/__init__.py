"""Everything of isodet that needs a GPU, run and measured by one command: `python -m benchmarks.gpu`.

docs/benchmarks/gpu.md says how to bring it to a machine without a network, and what the numbers mean.
"""
