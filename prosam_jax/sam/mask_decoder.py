"""SAM's mask decoder: from image embeddings and prompts to masks and their predicted IoU."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from prosam_jax import layers
from prosam_jax.config import SAMConfig
from prosam_jax.sam.mlp import MLP
from prosam_jax.sam.two_way_transformer import TwoWayTransformer

NORM_EPS = 1e-6


class MaskDecoder(nnx.Module):
    """Predicts masks: mask 0 is the single mask, the others are alternatives.

    `__call__` is `attend`, `upscale`, `predict_masks` and `predict_iou` in turn.
    """

    def __init__(self, cfg: SAMConfig, *, rngs: nnx.Rngs):
        dim, dtype = cfg.prompt_embed_dim, jnp.dtype(cfg.dtype)
        init = nnx.initializers.normal(1.0)
        num_masks = cfg.num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(cfg, rngs=rngs)
        self.iou_token = nnx.Embed(1, dim, embedding_init=init, rngs=rngs)
        self.mask_tokens = nnx.Embed(num_masks, dim, embedding_init=init, rngs=rngs)
        self.output_upscaling = nnx.List(
            [
                layers.ConvTranspose2x2(dim, dim // 4, dtype=dtype, rngs=rngs),
                layers.layer_norm(dim // 4, NORM_EPS, dtype=dtype, rngs=rngs),
                layers.gelu,
                layers.ConvTranspose2x2(dim // 4, dim // 8, dtype=dtype, rngs=rngs),
                layers.gelu,
            ]
        )
        self.output_hypernetworks_mlps = nnx.List(
            MLP(dim, dim, dim // 8, 3, dtype=dtype, rngs=rngs) for _ in range(num_masks)
        )
        self.iou_prediction_head = MLP(
            dim, cfg.iou_head_hidden_dim, num_masks, cfg.iou_head_depth, dtype=dtype, rngs=rngs
        )
        self.num_masks = num_masks
        self.dtype = dtype

    def __call__(
        self,
        image_embeddings: Float[Array, "b h w c"],
        image_pe: Float[Array, "1 h w c"],
        sparse: Float[Array, "b n c"],
        dense: Float[Array, "b h w c"],
        *,
        token_mask: Bool[Array, "b n"] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Float[Array, "b m H W"], Float[Array, "b m"]]:
        """Predicts masks of a batch of images, each image with its own prompts.

        Args:
            image_embeddings: From the image encoder.
            image_pe: Positions of the embeddings' cells, `PromptEncoder.dense_pe`.
            sparse: Prompt tokens.
            dense: Mask prompts.
            token_mask: False for prompt tokens that are padding and have no effect.
            multimask_output: True for masks 1 and up, False for mask 0 alone.

        Returns:
            Mask logits at four times the size of the image embeddings, and the IoU that the decoder
            expects of each mask; both float32.
        """
        tokens, image = self.attend(image_embeddings, image_pe, sparse, dense, token_mask)
        which = range(1, self.num_masks) if multimask_output else range(1)
        masks = self.predict_masks(tokens, self.upscale(image), which)
        return masks, self.predict_iou(tokens)[:, which.start : which.stop]

    def attend(
        self,
        image_embeddings: Float[Array, "b h w c"],
        image_pe: Float[Array, "1 h w c"],
        sparse: Float[Array, "b n c"],
        dense: Float[Array, "b h w c"],
        token_mask: Bool[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b m c"], Float[Array, "b h w c"]]:
        """Lets output tokens, prompts and image attend to each other.

        Returns:
            All tokens (IoU, masks, prompts) and the image.
        """
        output = jnp.concatenate([self.iou_token.embedding[...], self.mask_tokens.embedding[...]])
        output = jnp.broadcast_to(output[None], (sparse.shape[0], *output.shape))
        tokens = jnp.concatenate([output, sparse], axis=1)
        if token_mask is not None:
            before = ((0, 0), (output.shape[1], 0))
            token_mask = jnp.pad(token_mask, before, constant_values=True)
        image, image_pe, tokens = (
            x.astype(self.dtype) for x in (image_embeddings + dense, image_pe, tokens)
        )
        return self.transformer(image, image_pe, tokens, token_mask)

    def upscale(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w 2 2 2 2 d"]:
        """Makes sixteen pixels, with an eighth of the channels, from each cell of the image.

        Every step treats each pixel alone, so pixels stay with their cell: the axes are its
        quarters (row, column), then their quarters. Only the masks' pixels are put in place.
        """
        for layer in self.output_upscaling:
            image = (
                layer.cells(image) if isinstance(layer, layers.ConvTranspose2x2) else layer(image)
            )
        return image

    def predict_masks(
        self,
        tokens: Float[Array, "b n c"],
        upscaled: Float[Array, "b h w 2 2 2 2 d"],
        which: Sequence[int],
    ) -> Float[Array, "b m H W"]:
        """Logits of the masks numbered `which`: each token's hypernetwork times the image."""
        b, h, w, *_, d = upscaled.shape
        weights = [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in which]
        weights = jnp.stack(weights, axis=1).reshape(b, -1, 1, 1, 1, 1, 1, 1, d)
        # Not a matrix product: XLA would write the image a second time for it, transposed.
        masks = (upscaled[:, None].astype(jnp.float32) * weights).sum(-1)
        masks = masks.transpose(0, 1, 2, 4, 6, 3, 5, 7)
        return masks.reshape(b, len(which), 4 * h, 4 * w)

    def predict_iou(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b m"]:
        """The expected IoU of every mask."""
        return self.iou_prediction_head(tokens[:, 0]).astype(jnp.float32)
