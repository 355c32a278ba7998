"""All that is worth measuring on a GPU, in one command: `python -m benchmarks.gpu`."""
