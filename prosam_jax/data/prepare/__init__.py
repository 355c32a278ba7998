"""Prepares benchmarks and users' own folders for training."""
