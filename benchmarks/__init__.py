"""Benchmarks: `python -m benchmarks` compares dargmin with other libraries."""
