"""Checks of cktf on a GPU, one function each, which `benchmarks/gpu.py` runs.

Every function takes a `Findings`, which names the device, and works on a CPU too.
"""
