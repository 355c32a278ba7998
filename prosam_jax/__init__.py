"""Visual reference segmentation with probabilistic prompts (ProSAM) in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prosam_jax.config import Config
    from prosam_jax.errors import UserError
    from prosam_jax.model import ProSAM
    from prosam_jax.sam.automatic_mask_generator import SamAutomaticMaskGenerator
    from prosam_jax.sam.predictor import SamPredictor
    from prosam_jax.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = [
    "Config",
    "ProSAM",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "Segmenter",
    "UserError",
    "__version__",
]

_HOMES = {
    "Config": "prosam_jax.config",
    "ProSAM": "prosam_jax.model",
    "SamAutomaticMaskGenerator": "prosam_jax.sam.automatic_mask_generator",
    "SamPredictor": "prosam_jax.sam.predictor",
    "Segmenter": "prosam_jax.segmenter",
    "UserError": "prosam_jax.errors",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import prosam_jax` does not load JAX."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
