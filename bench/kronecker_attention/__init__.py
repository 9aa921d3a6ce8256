"""Benchmarks of Kronecker attention."""
