"""Packs embeddings into fewer bytes and unpacks them; runs on the device."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped


class Packed(NamedTuple):
    """Embeddings as they are stored.

    Attributes:
        values: The embeddings, or integers from -127 to 127.
        scale: The value of one integer step in each channel of each image, or None.
    """

    values: Shaped[Any, "b i j e"]
    scale: Float[Any, "b 1 1 e"] | None


def pack(embeddings: Float[Array, "b i j e"], dtype: str) -> Packed:
    """Converts embeddings to a type of `cache.dtype`.

    For int8 the largest number of each channel of each image becomes 127. SAM's channels
    differ in size, and its positions, after a layer norm, hardly do: one scale per position has
    larger errors.
    """
    if dtype != "int8":
        return Packed(embeddings.astype(dtype), None)
    x = embeddings.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True) / 127
    whole = jnp.round(x / jnp.where(scale == 0, 1, scale))
    return Packed(whole.astype(jnp.int8), scale)


def unpack(packed: Packed, dtype: DTypeLike) -> Float[Array, "b i j e"]:
    """The embeddings in the type of SAM's activations."""
    if packed.scale is None:
        return packed.values.astype(dtype)
    return (packed.values.astype(jnp.float32) * packed.scale).astype(dtype)
