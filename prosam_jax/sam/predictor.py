"""SAM for users: images of any size, with prompts and masks in pixels of the image."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from prosam_jax.config import (
    PACKAGED,
    SAM_MODELS,
    SAMSettings,
    check_at_least,
    check_choice,
    check_setting,
    flat_mapping,
)
from prosam_jax.equations import foreground
from prosam_jax.errors import UserError
from prosam_jax.images import ImageLike, Numbers, read
from prosam_jax.sam.build_sam import build_sam
from prosam_jax.sam.model import Sam
from prosam_jax.sam.transforms import Prompts, ResizeLongestSide, stack
from prosam_jax.weights import files, pretrained

MADE_BY = "prosam weights convert sam --model MODEL --checkpoint FILE --out OUT"


class SamPredictor:
    """Embeds images once, then answers any number of prompts.

    Names, arguments and results are those of `segment_anything.SamPredictor`; for batches, those of
    `sam2.SAM2ImagePredictor`. Unlike theirs, it encodes and decodes a whole batch at once.

    Another image size, other kinds of prompts and up to seven clicks need no new compilation; with
    more clicks, their number is padded to the next power of two. Padding is left out of every
    attention and changes results by rounding only.
    """

    def __init__(self, sam: Sam):
        self.model = sam
        # Flattened once: walking the modules at every call takes longer than decoding.
        self._leaves, self._tree = jax.tree.flatten(sam)
        self.reset_image()

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **overrides: Any) -> "SamPredictor":
        """A predictor with trained weights.

        Args:
            name: "sam_vit_b", "sam_vit_l" or "sam_vit_h", whose weight file is in `weights/` or
                else comes from the Hugging Face hub, unless the settings say otherwise;
                "sam_shapes", which comes with the package and knows generated shapes; a weight file
                of a SAM (`prosam weights convert`); or the name of a trained model
                (`ProSAM.from_pretrained`), for the SAM that it was trained with.
            overrides: Groups of settings that differ, here only `sam`, such as
                `sam={"dtype": "bfloat16"}`.

        Raises:
            UserError: There is no such model, its file is missing, damaged or not a SAM's, or a
                setting is unknown or not SAM's.
        """
        changes = flat_mapping(overrides)
        if other := [x for x in changes if not x.startswith("sam.")]:
            raise UserError(f"{', '.join(other)}: SamPredictor takes settings of sam only")
        return cls(_load(name, changes))

    def set_image(self, image: ImageLike, image_format: str = "RGB") -> None:
        """Embeds an image for `predict`.

        Args:
            image: An array of height x width, or height x width x 1, 3 or 4 (alpha is left out),
                of uint8 or of floats in 0-1; or a Pillow image, or the path of one. Its EXIF
                rotation is applied, so that points and boxes are in pixels as a viewer shows it.
            image_format: "RGB" or "BGR", the order of an array's channels.

        Raises:
            UserError: The image cannot be read, or the format is unknown.
            FileNotFoundError: There is no such file.
        """
        self.set_image_batch([image], image_format)

    def set_image_batch(
        self,
        images: Sequence[ImageLike],
        image_format: str = "RGB",
        *,
        micro_batch: int | None = None,
    ) -> None:
        """Embeds several images for `predict_batch`.

        Args:
            images: As for `set_image`; their sizes may differ.
            image_format: "RGB" or "BGR", the order of the arrays' channels.
            micro_batch: Images that the encoder takes at a time, to bound its memory; None for
                all. The last ones are padded to this number.

        Raises:
            UserError: As for `set_image`; no images; or `micro_batch` is less than 1.
            FileNotFoundError: There is no such file.
        """
        check_choice("image_format", image_format, ("RGB", "BGR"))
        if not images:
            raise UserError("images is empty: pass at least one")
        step = len(images) if micro_batch is None else micro_batch
        check_at_least("micro_batch", step, 1)
        frames = []
        squares = np.zeros(
            (-(-len(images) // step) * step, *self.model.cfg.image_size, 3), np.uint8
        )
        sizes = np.zeros((len(squares), 2), np.int32)
        for i, image in enumerate(images):
            name = "image" if len(images) == 1 else f"images[{i}]"
            pixels = read(image, name, order=image_format)
            frames.append(ResizeLongestSide.fit((pixels.shape[0], pixels.shape[1]), self.model.cfg))
            height, width = sizes[i] = frames[i].inner
            squares[i, :height, :width] = frames[i].scaled(pixels)
        parts = [
            _encode(self._tree, self._leaves, squares[i : i + step], sizes[i : i + step])
            for i in range(0, len(squares), step)
        ]
        self._embeddings = jnp.concatenate(parts)[: len(images)]
        self._frames = frames

    def reset_image(self) -> None:
        """Forgets the images and frees their embeddings."""
        self._embeddings: Array | None = None
        self._frames: list[ResizeLongestSide] = []

    def get_image_embedding(self) -> Float[Array, "b h w c"]:
        """Embeddings of the images that are set, channels last; UserError if there are none."""
        if self._embeddings is None:
            raise UserError("no image is set: call set_image first")
        return self._embeddings

    def predict(
        self,
        point_coords: Numbers | None = None,
        point_labels: Numbers | None = None,
        box: Numbers | None = None,
        mask_input: Numbers | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[
        Bool[np.ndarray, "c H W"] | Float[np.ndarray, "c H W"],
        Float[np.ndarray, " c"],
        Float[np.ndarray, "c h w"],
    ]:
        """Segments what the prompts point at in the image of `set_image`.

        Any prompt may be left out, even all of them. Points may lie outside the image.

        Args:
            point_coords: N x 2, x and y in pixels of the image.
            point_labels: N labels, 1 for foreground and 0 for background.
            box: x0, y0, x1, y1 in pixels of the image; 4 or 1 x 4.
            mask_input: 1 x h x w, the low-resolution logits of one mask of an earlier call.
            multimask_output: True for several masks (better for a single click), False for one.
            return_logits: True for the masks' logits instead of the masks.

        Returns:
            The masks at the size of the image, the IoU that SAM expects of each, and their
            low-resolution logits.

        Raises:
            UserError: No image or more than one is set, or a prompt has the wrong shape or range.
        """
        if len(self._frames) > 1:
            raise UserError(f"{len(self._frames)} images are set: call predict_batch")
        masks, iou, logits = self.predict_batch(
            [point_coords], [point_labels], [box], [mask_input], multimask_output, return_logits
        )
        return masks[0], iou[0], logits[0]

    def predict_batch(
        self,
        point_coords_batch: Sequence[Numbers | None] | None = None,
        point_labels_batch: Sequence[Numbers | None] | None = None,
        box_batch: Sequence[Numbers | None] | None = None,
        mask_input_batch: Sequence[Numbers | None] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """`predict` for every image of `set_image_batch`, in one call of the decoder.

        Args:
            point_coords_batch: `point_coords` or None for each image; None for no points at all.
            point_labels_batch: `point_labels` or None for each image.
            box_batch: `box` or None for each image.
            mask_input_batch: `mask_input` or None for each image.
            multimask_output: As for `predict`.
            return_logits: As for `predict`.

        Returns:
            Lists of masks, expected IoU and low-resolution logits, one entry for each image.

        Raises:
            UserError: No image is set, a list does not have one entry per image, or a prompt has
                the wrong shape or range.
        """
        embeddings = self.get_image_embedding()
        columns = []
        for name, values in (
            ("point_coords_batch", point_coords_batch),
            ("point_labels_batch", point_labels_batch),
            ("box_batch", box_batch),
            ("mask_input_batch", mask_input_batch),
        ):
            values = [None] * len(self._frames) if values is None else values
            if len(values) != len(self._frames):
                raise UserError(
                    f"{name} has {len(values)} entries for {len(self._frames)} images: pass one "
                    "for each, None for no such prompt"
                )
            columns.append(values)
        prompts = [x.prompt(*row) for x, *row in zip(self._frames, *columns, strict=True)]
        height, width = self.model.cfg.embedding_size
        found = _decode(
            self._tree,
            self._leaves,
            embeddings,
            stack(prompts, (4 * height, 4 * width)),
            multimask_output=multimask_output,
        )
        logits, iou = map(np.array, found)
        masks = [frame.masks(x) for frame, x in zip(self._frames, logits, strict=True)]
        if not return_logits:
            masks = [foreground(x) for x in masks]
        return masks, list(iou), list(logits)


def _load(name: str | os.PathLike[str], changes: Mapping[str, Any]) -> Sam:
    text = os.fspath(name)
    given = {x.removeprefix("sam."): value for x, value in changes.items()}
    model = text.removeprefix("sam_")
    if text.startswith("sam_") and model in SAM_MODELS:
        weights = {"weights": PACKAGED} if model == "shapes" else {}
        cfg = _replaced(SAMSettings.of(model=model), weights | given)
        return build_sam(pretrained.or_hub(cfg))
    path = pathlib.Path(os.path.expanduser(text))
    if path.is_file() or (path.suffix and not path.is_dir()):
        held = files.metadata(path, made_by=MADE_BY)
        if held.get("kind") == "sam":
            check_choice("architecture", held.get("architecture"), SAM_MODELS)
            cfg = SAMSettings.of(model=held["architecture"])
            return build_sam(_replaced(cfg, {"weights": str(path)} | given))
    elif len(path.parts) == 1 and not path.exists():
        names = (f"sam_{x}" for x in SAM_MODELS)
        check_choice("model", text, (*names, *pretrained.PACKAGED_ENCODERS))
    cfg = pretrained.usable(pretrained.settings_of(pretrained.find(name)), changes)
    return build_sam(cfg.sam, cfg.seed)


def _replaced(cfg: SAMSettings, changes: Mapping[str, Any]) -> SAMSettings:
    for name in changes:
        check_setting(f"sam.{name}")
    return dataclasses.replace(cfg, **changes)


@functools.partial(jax.jit, static_argnames="tree")
def _encode(
    tree: Any, leaves: list[Array], images: UInt8[Array, "b H W 3"], sizes: Int[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Embeds images of `sizes` that lie at the top left; sizes are data, so it compiles once."""
    sam = jax.tree.unflatten(tree, leaves)
    height, width = images.shape[1:3]
    rows = jnp.arange(height).reshape(1, -1, 1, 1) < sizes[:, 0].reshape(-1, 1, 1, 1)
    cols = jnp.arange(width).reshape(1, 1, -1, 1) < sizes[:, 1].reshape(-1, 1, 1, 1)
    # SAM pads after normalising: the padding is the mean colour, not black
    return sam.encode_image(jnp.where(rows & cols, sam.preprocess(images), 0.0))


@functools.partial(jax.jit, static_argnames=("tree", "multimask_output"))
def _decode(
    tree: Any,
    leaves: list[Array],
    embeddings: Float[Array, "b h w c"],
    prompts: Prompts,
    *,
    multimask_output: bool,
) -> tuple[Float[Array, "b m H W"], Float[Array, "b m"]]:
    sam = jax.tree.unflatten(tree, leaves)
    sparse, dense = sam.prompt_encoder(
        points=prompts.points, labels=prompts.labels, boxes=prompts.boxes, masks=prompts.masks
    )
    _, no_mask = sam.prompt_encoder(boxes=prompts.boxes)
    dense = jnp.where(prompts.has_mask.reshape(-1, 1, 1, 1), dense, no_mask)
    return sam.decode(
        embeddings,
        sparse,
        dense,
        token_mask=prompts.token_mask,
        multimask_output=multimask_output,
    )
