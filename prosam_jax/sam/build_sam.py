"""Builds a frozen SAM from the settings, and embeds target images with it."""

import pathlib

import jax
from jaxtyping import Array, Float, UInt8

from prosam_jax import resize
from prosam_jax.config import HUB, SAMConfig, SAMSettings
from prosam_jax.convert import from_hub
from prosam_jax.errors import UserError
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files


def build_sam(cfg: SAMSettings, seed: int = 0) -> Sam:
    """The SAM that the settings name, with the weights of its weight file.

    Args:
        cfg: Size, weights, input size and precision.
        seed: Draws the weights if they are "random".

    Raises:
        UserError: The file is missing, damaged or for another SAM; the message names the command
            that makes it. Or it cannot be fetched from the hub, as `fetch`. Or cuDNN's attention is
            asked for without a GPU.
    """
    arch = cfg.architecture()
    if arch.attention == "cudnn" and jax.default_backend() != "gpu":
        raise UserError(
            f"sam.attention='cudnn' needs a GPU, not {jax.default_backend()}: set it to 'plain'"
        )
    if cfg.weights == HUB:
        fetch(cfg.model)
    return files.frozen(
        lambda rngs: Sam(arch, rngs=rngs),
        cfg.weight_file(),
        seed,
        kind="sam",
        architecture=cfg.model,
    )


def fetch(model: str, *, check: bool = False, source: pathlib.Path | None = None) -> from_hub.Kept:
    """Sees to it that the weight file of a published SAM is in the cache; see `from_hub.fetch`."""
    return from_hub.fetch(
        lambda rngs: Sam(SAMConfig.named(model), rngs=rngs),
        kind="sam",
        architecture=model,
        check=check,
        source=source,
    )


def embed(sam: Sam, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b i j e"]:
    """SAM's embedding of target images.

    As in VRP-SAM, images are resized to SAM's square, bilinearly with aligned corners. Their aspect
    ratio is not kept.
    """
    square = resize.bilinear(resize.normalize(images), sam.cfg.image_size, align_corners=True)
    return sam.encode_image(square)
