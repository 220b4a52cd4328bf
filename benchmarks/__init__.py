"""Benchmarks: every number in the documents comes from one of these commands."""
