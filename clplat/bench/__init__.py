"""Benchmarks: every figure a ratio of things measured in turn within one process."""
