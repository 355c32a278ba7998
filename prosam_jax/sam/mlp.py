"""The two kinds of MLP in SAM."""

from collections.abc import Callable

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from prosam_jax import layers


class MLPBlock(nnx.Module):
    """The MLP of a transformer block: one hidden layer."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        activation: Callable[[Array], Array],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.lin1 = layers.linear(dim, hidden_dim, dtype=dtype, rngs=rngs)
        self.lin2 = layers.linear(hidden_dim, dim, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*d c"]) -> Float[Array, "*d c"]:
        """Keeps the shape."""
        return self.lin2(self.activation(self.lin1(x)))


class MLP(nnx.Module):
    """A head of `depth` linear layers with ReLU between them."""

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        depth: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        dims = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nnx.List(
            layers.linear(dims[i], dims[i + 1], dtype=dtype, rngs=rngs) for i in range(depth)
        )

    def __call__(self, x: Float[Array, "*d c"]) -> Float[Array, "*d e"]:
        """Maps `in_dim` channels to `out_dim`."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)
