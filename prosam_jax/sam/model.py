"""SAM (Kirillov et al. 2023, arXiv 2304.02643): image encoder, prompt encoder, mask decoder."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Real

from prosam_jax import resize
from prosam_jax.config import SAMConfig
from prosam_jax.equations import foreground
from prosam_jax.errors import UserError
from prosam_jax.sam.image_encoder import ImageEncoderViT
from prosam_jax.sam.mask_decoder import MaskDecoder
from prosam_jax.sam.prompt_encoder import PromptEncoder

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SamOutput(NamedTuple):
    """SAM's output for a batch of images.

    Attributes:
        masks: Where logits are above 0, at the original size of the images.
        iou: The IoU that the decoder expects of each mask.
        low_res_logits: Mask logits at four times the image embedding, the size of mask prompts.
    """

    masks: Bool[Array, "b m H W"]
    iou: Float[Array, "b m"]
    low_res_logits: Float[Array, "b m h w"]


class Sam(nnx.Module):
    """The whole model; attributes are named as in `segment_anything`."""

    def __init__(self, cfg: SAMConfig, *, rngs: nnx.Rngs):
        self.image_encoder = ImageEncoderViT(cfg, rngs=rngs)
        self.prompt_encoder = PromptEncoder(cfg, rngs=rngs)
        self.mask_decoder = MaskDecoder(cfg, rngs=rngs)
        self.cfg = cfg

    def __call__(
        self,
        images: Real[Array, "b h w 3"],
        *,
        points: Float[Array, "b n 2"] | None = None,
        labels: Int[Array, "b n"] | None = None,
        boxes: Float[Array, "b 4"] | None = None,
        masks: Float[Array, "b mh mw 1"] | None = None,
        multimask_output: bool = False,
        original_size: tuple[int, int] | None = None,
    ) -> SamOutput:
        """Segments what the prompts point at.

        Args:
            images: RGB, 0-255, resized so that they fit `cfg.image_size`.
            points: x and y in pixels of `images`.
            labels: 1 for foreground, 0 for background, -1 for padding.
            boxes: x0, y0, x1, y1 in pixels of `images`.
            masks: Earlier `low_res_logits` of one mask, channels last.
            multimask_output: True for several masks per image, False for one.
            original_size: (height, width) of the masks; None for that of `images`.

        Returns:
            Masks with their expected IoU and low-resolution logits.

        Raises:
            UserError: As in `preprocess` and `PromptEncoder`.
        """
        embeddings = self.encode_image(self.preprocess(images))
        sparse, dense = self.prompt_encoder(points=points, labels=labels, boxes=boxes, masks=masks)
        logits, iou = self.decode(embeddings, sparse, dense, multimask_output=multimask_output)
        size = images.shape[1], images.shape[2]
        resized = self.postprocess_masks(logits, size, original_size or size)
        return SamOutput(foreground(resized), iou, logits)

    def preprocess(self, images: Real[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
        """Normalises RGB images of 0-255, then pads them with zeros to `cfg.image_size`.

        Raises:
            UserError: The images are larger than `cfg.image_size`.
        """
        (h, w), (height, width) = images.shape[1:3], self.cfg.image_size
        if h > height or w > width:
            raise UserError(
                f"images of {h} x {w} are larger than SAM's {height} x {width}: shrink them first"
            )
        mean, std = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 3) for x in (PIXEL_MEAN, PIXEL_STD))
        x = (images.astype(jnp.float32) - mean) / std
        return jnp.pad(x, ((0, 0), (0, height - h), (0, width - w), (0, 0)))

    def encode_image(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """Embeds preprocessed images; most of the cost of SAM."""
        return self.image_encoder(images)

    def decode(
        self,
        image_embeddings: Float[Array, "b h w c"],
        sparse: Float[Array, "b n c"],
        dense: Float[Array, "b h w c"],
        *,
        token_mask: Bool[Array, "b n"] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Float[Array, "b m H W"], Float[Array, "b m"]]:
        """Low-resolution mask logits and expected IoU, see `MaskDecoder`."""
        image_pe = self.prompt_encoder.dense_pe()
        return self.mask_decoder(
            image_embeddings,
            image_pe,
            sparse,
            dense,
            token_mask=token_mask,
            multimask_output=multimask_output,
        )

    def postprocess_masks(
        self,
        logits: Float[Array, "b m h w"],
        input_size: tuple[int, int],
        original_size: tuple[int, int],
    ) -> Float[Array, "b m H W"]:
        """Resizes mask logits to the original image, bilinearly with align_corners=False.

        Args:
            logits: Low-resolution logits.
            input_size: (height, width) of the image that was padded.
            original_size: (height, width) of the result.
        """
        x = jnp.moveaxis(logits, 1, -1)
        x = resize.bilinear(x, self.cfg.image_size, align_corners=False)
        x = x[:, : input_size[0], : input_size[1]]
        x = resize.bilinear(x, original_size, align_corners=False)
        return jnp.moveaxis(x, -1, 1)
