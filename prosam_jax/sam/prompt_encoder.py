"""SAM's prompt encoder: turns points, boxes, masks and learned prompts into embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from prosam_jax import layers
from prosam_jax.config import SAMConfig
from prosam_jax.errors import UserError

NORM_EPS = 1e-6


class PositionEmbeddingRandom(nnx.Module):
    """Random Fourier features of positions (arXiv 2006.10739); the frequencies are not learned."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1.0)
        self.positional_encoding_gaussian_matrix = nnx.Variable(init(rngs.params(), (2, dim // 2)))

    def __call__(self, xy: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
        """Encodes positions, 0 to 1 from the top left to the bottom right; always float32."""
        matrix = self.positional_encoding_gaussian_matrix[...]
        turns = jnp.matmul(2 * xy - 1, matrix, precision=jax.lax.Precision.HIGHEST)
        angle = 2 * jnp.pi * turns
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class PromptEncoder(nnx.Module):
    """Encodes prompts into sparse tokens and a dense map."""

    def __init__(self, cfg: SAMConfig, *, rngs: nnx.Rngs):
        dim, hidden, dtype = cfg.prompt_embed_dim, cfg.mask_in_chans, jnp.dtype(cfg.dtype)

        def embedding() -> nnx.Embed:
            return nnx.Embed(1, dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)

        self.pe_layer = PositionEmbeddingRandom(dim, rngs=rngs)
        # background point, foreground point, top left and bottom right corner of a box
        self.point_embeddings = nnx.List(embedding() for _ in range(4))
        self.not_a_point_embed = embedding()
        self.mask_downscaling = nnx.List(
            [
                layers.conv(1, hidden // 4, 2, stride=2, dtype=dtype, rngs=rngs),
                layers.layer_norm(hidden // 4, NORM_EPS, dtype=dtype, rngs=rngs),
                layers.gelu,
                layers.conv(hidden // 4, hidden, 2, stride=2, dtype=dtype, rngs=rngs),
                layers.layer_norm(hidden, NORM_EPS, dtype=dtype, rngs=rngs),
                layers.gelu,
                layers.conv(hidden, dim, 1, dtype=dtype, rngs=rngs),
            ]
        )
        self.no_mask_embed = embedding()
        self.cfg = cfg

    def __call__(
        self,
        *,
        points: Float[Array, "b n 2"] | None = None,
        labels: Int[Array, "b n"] | None = None,
        boxes: Float[Array, "b 4"] | None = None,
        masks: Float[Array, "b h w 1"] | None = None,
        prompts: Float[Array, "b q c"] | None = None,
    ) -> tuple[Float[Array, "b m c"], Float[Array, "b eh ew c"]]:
        """Encodes the prompts of a batch of images, each image with its own.

        As in SAM, points without a box are followed by one padding point. Learned prompts come
        last and are passed on unchanged.

        Args:
            points: x and y in pixels of the encoder's input.
            labels: 1 for foreground, 0 for background, -1 for padding.
            boxes: x0, y0, x1, y1 in pixels of the encoder's input.
            masks: Mask logits at four times the size of the image embedding.
            prompts: Prompt embeddings, such as those of ProSAM.

        Returns:
            The sparse tokens (points, box corners, learned prompts) and the dense map, which
            has the size of the image embedding.

        Raises:
            UserError: Only one of `points` and `labels` is given, or `masks` have another size.
        """
        if (points is None) != (labels is None):
            given, missing = ("labels", "points") if points is None else ("points", "labels")
            raise UserError(f"{given} without {missing}: give both or neither")
        tokens = []
        if points is not None and labels is not None:
            tokens.append(self.embed_points(points, labels, pad=boxes is None))
        if boxes is not None:
            tokens.append(self.embed_boxes(boxes))
        if prompts is not None:
            tokens.append(prompts)
        batch = tokens[0].shape[0] if tokens else 1 if masks is None else masks.shape[0]
        dim = self.cfg.prompt_embed_dim
        sparse = jnp.concatenate(tokens, axis=1) if tokens else jnp.zeros((batch, 0, dim))
        if masks is not None:
            return sparse, self.embed_masks(masks)
        dense = self.no_mask_embed.embedding[...].reshape(1, 1, 1, dim)
        return sparse, jnp.broadcast_to(dense, (batch, *self.cfg.embedding_size, dim))

    def embed_points(
        self, points: Float[Array, "b n 2"], labels: Int[Array, "b n"], *, pad: bool
    ) -> Float[Array, "b m c"]:
        """Positions plus the embedding of their label; `pad` appends a padding point."""
        if pad:
            points = jnp.pad(points, ((0, 0), (0, 1), (0, 0)))
            labels = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=-1)
        label = labels[..., None]
        tokens = jnp.where(label == -1, 0.0, self._positions(points))
        background, foreground = self.point_embeddings[:2]
        for value, embed in ((-1, self.not_a_point_embed), (0, background), (1, foreground)):
            tokens += jnp.where(label == value, embed.embedding[...].reshape(1, 1, -1), 0.0)
        return tokens

    def embed_boxes(self, boxes: Float[Array, "b 4"]) -> Float[Array, "b 2 c"]:
        """Positions of the top left and the bottom right corner plus their embeddings."""
        corners = jnp.concatenate([e.embedding[...] for e in self.point_embeddings[2:]])
        return self._positions(boxes.reshape(-1, 2, 2)) + corners[None]

    def embed_masks(self, masks: Float[Array, "b h w 1"]) -> Float[Array, "b eh ew c"]:
        """Scales masks down to the image embedding; UserError if their size is wrong."""
        expected = tuple(4 * side for side in self.cfg.embedding_size)
        if masks.shape[1:3] != expected:
            raise UserError(
                f"masks of {masks.shape[1]} x {masks.shape[2]} must be {expected[0]} x "
                f"{expected[1]}, four times the image embedding"
            )
        x = masks
        for layer in self.mask_downscaling:
            x = layer(x)
        return x

    def dense_pe(self) -> Float[Array, "1 h w c"]:
        """Positions of the image embedding's cells, at their centres."""
        h, w = self.cfg.embedding_size
        y, x = jnp.meshgrid((jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w, indexing="ij")
        return self.pe_layer(jnp.stack([x, y], axis=-1)[None])

    def _positions(self, xy: Float[Array, "b n 2"]) -> Float[Array, "b n c"]:
        height, width = self.cfg.image_size
        # a pixel's centre lies half a pixel from its corner
        return self.pe_layer((xy + 0.5) / jnp.array([[[width, height]]], xy.dtype))
