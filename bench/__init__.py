"""Benchmarks: ``make bench``, ``python -m sublimate bench``, ``pytest bench``. See README.md."""
