"""Benchmarks: `python -m benchmarks.speed`. Not part of the package."""
