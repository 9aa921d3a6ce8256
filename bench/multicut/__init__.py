"""Benchmarks of the dense multicut."""
