"""Triton kernels of the path-integral family."""
