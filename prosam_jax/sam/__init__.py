"""The Segment Anything Model in Flax NNX."""

from prosam_jax.sam.image_encoder import ImageEncoderViT
from prosam_jax.sam.mask_decoder import MaskDecoder
from prosam_jax.sam.model import Sam, SamOutput
from prosam_jax.sam.predictor import SamPredictor
from prosam_jax.sam.prompt_encoder import PromptEncoder
from prosam_jax.sam.two_way_transformer import TwoWayTransformer

__all__ = [
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "SamOutput",
    "SamPredictor",
    "TwoWayTransformer",
]
