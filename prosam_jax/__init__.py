"""Visual reference segmentation with probabilistic prompts (ProSAM) in JAX and Flax."""

__version__ = "0.1.0"
