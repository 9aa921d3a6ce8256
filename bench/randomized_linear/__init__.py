"""Benchmarks of the randomized linear layers and the Hadamard transform."""
