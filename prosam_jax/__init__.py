"""Visual reference segmentation with probabilistic prompts (ProSAM) in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prosam_jax.sam.predictor import SamPredictor

__version__ = "0.1.0"
__all__ = ["SamPredictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports what needs JAX when it is first asked for."""
    if name == "SamPredictor":
        from prosam_jax.sam.predictor import SamPredictor

        return SamPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
