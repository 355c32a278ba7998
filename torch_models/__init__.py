"""The models in plain PyTorch, what tests and benchmarks compare this library with."""
