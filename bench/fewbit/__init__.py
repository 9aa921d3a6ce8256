"""Benchmarks of the few-bit activations."""
