"""Visual reference segmentation with probabilistic prompts (ProSAM) in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prosam_jax.sam.predictor import SamPredictor
    from prosam_jax.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["SamPredictor", "Segmenter", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports what needs JAX when it is first asked for."""
    if name == "SamPredictor":
        from prosam_jax.sam.predictor import SamPredictor

        return SamPredictor
    if name == "Segmenter":
        from prosam_jax.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
