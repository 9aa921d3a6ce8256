"""Benchmarks of the path-integral kernels."""
