"""The models in plain PyTorch, for tests and benchmarks to compare this library with."""
