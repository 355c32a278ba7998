"""Visual reference segmentation: show an object in one picture, segment it in others."""

import dataclasses
import functools
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8
from PIL import Image

from prosam_jax import calibration, inference, model, resize
from prosam_jax.config import check_at_least
from prosam_jax.data.annotation import given_annotation
from prosam_jax.data.transforms import resize_image
from prosam_jax.equations import foreground
from prosam_jax.errors import UserError
from prosam_jax.images import ImageLike, Numbers, read
from prosam_jax.inference import Prediction, References, Targets
from prosam_jax.model import ProSAM
from prosam_jax.weights import pretrained


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one picture, at its own size; the first axis is the class.

    Attributes:
        classes: Names of the classes, in the order of their first references.
        masks: One mask per class; masks of different classes may overlap.
        label_map: One class per pixel: i + 1 for class i where its logit is the largest and above
            0, and 0 where no logit is above 0.
        expected_iou: The IoU that each mask has by its own probabilities, 0 if it is empty
            (`calibration.expected_iou`): a number to sort masks by.
        uncertainty: Entropy of each pixel's probability, in bits: 0 where the model is sure, 1 at
            the mask's border (`calibration.entropy`). None unless it was requested.
    """

    classes: tuple[str, ...]
    masks: Bool[np.ndarray, "c H W"]
    label_map: Int32[np.ndarray, "H W"]
    expected_iou: Float[np.ndarray, " c"]
    uncertainty: Float[np.ndarray, "c H W"] | None


class Segmenter:
    """Segments the objects of references in other pictures.

        seg = Segmenter.from_pretrained("prosam-shapes")
        seg.set_reference("cat.jpg", mask="cat.png")
        found = seg.segment("other.jpg")

    Every picture is resized to the model's square, as in training, and its masks back to the
    picture's size. So there is one compilation for single pictures, one for each batch size, and
    one for each number of references of a class.
    """

    def __init__(self, prosam: ProSAM, image_size: int):
        """Takes a model and the side in pixels of the squares that it was trained on."""
        self.model = prosam
        self.image_size = image_size
        # Flattened once, because walking the modules takes longer than a small decoder.
        self._leaves, self._tree = jax.tree.flatten(prosam)
        square = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        merged, _ = jax.eval_shape(prosam.backbone.trunk, square)
        self._cells: tuple[int, int] = merged.shape[1:3]
        self._references: dict[str, References] = {}

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str] = pretrained.DEFAULT, **overrides: Any
    ) -> "Segmenter":
        """Loads a trained model; arguments and errors are those of `ProSAM.from_pretrained`."""
        built, cfg = model.load(name, overrides)
        return cls(built, cfg.data.image_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their first references."""
        return tuple(self._references)

    def set_reference(
        self,
        image: ImageLike,
        *,
        mask: ImageLike | None = None,
        points: Numbers | None = None,
        box: Numbers | None = None,
        scribble: ImageLike | None = None,
        label: str = "object",
    ) -> None:
        """Sets the reference of a class, in place of its earlier ones.

        Exactly one of mask, points, box and scribble annotates the object. Other classes keep their
        references.

        Args:
            image: An array of height x width, or height x width x 1, 3 or 4 (alpha is dropped), of
                uint8 or of floats in 0-1; a Pillow image; or the path of a file. EXIF rotation is
                applied.
            mask: The object, at the size of the picture: an array of bool, of floats in 0-1, or of
                integers (0 and one other number); or a picture of it, white on black.
            points: N x 2, x and y in pixels of the picture, on the object.
            box: x0, y0, x1, y1 in pixels of the picture, around the object.
            scribble: Strokes on the object, given like a mask.
            label: Name of the class.

        Raises:
            UserError: The picture cannot be read, or the annotation is not valid.
            FileNotFoundError: There is no such file.
        """
        given = {"mask": mask, "points": points, "box": box, "scribble": scribble}
        self._references[label] = self._encoded(image, given)

    def add_reference(
        self,
        image: ImageLike,
        *,
        mask: ImageLike | None = None,
        points: Numbers | None = None,
        box: Numbers | None = None,
        scribble: ImageLike | None = None,
        label: str = "object",
    ) -> None:
        """Adds a reference to a class (k-shot); otherwise like `set_reference`."""
        given = {"mask": mask, "points": points, "box": box, "scribble": scribble}
        new = self._encoded(image, given)
        if label in self._references:
            held = self._references[label]
            new = jax.tree.map(lambda *xs: jnp.concatenate(xs), held, new)
        self._references[label] = new

    def reset(self) -> None:
        """Removes all references."""
        self._references = {}

    @overload
    def segment(
        self,
        images: ImageLike,
        *,
        uncertainty: bool = ...,
        batch_size: int = ...,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        images: Iterable[ImageLike],
        *,
        uncertainty: bool = ...,
        batch_size: int = ...,
    ) -> Iterator[Segmentation]: ...

    def segment(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        uncertainty: bool = False,
        batch_size: int = 4,
    ) -> Segmentation | Iterator[Segmentation]:
        """Segments the classes of the references in pictures.

        Args:
            images: A picture, as for `set_reference`, or an iterable of pictures of any sizes, such
                as a list or `folder.glob("*.jpg")`. No more than a batch is in memory at a time.
            uncertainty: Whether to add uncertainty maps.
            batch_size: How many pictures of an iterable to process at a time; the last batch is
                padded. It only affects time and memory.

        Returns:
            The result for the picture, or for an iterable an iterator over results. It computes
            them as it goes, with the references that were set when this was called. A
            bad picture ends it, after the results of those before.

        Raises:
            UserError: No reference is set, a picture cannot be read, or `batch_size` is too small.
            FileNotFoundError: There is no such file.
        """
        if not self._references:
            raise UserError("no reference is set: call set_reference first")
        check_at_least("batch_size", batch_size, 1)
        if _is_one(images):
            one = [read(cast(ImageLike, images))]
            (found,) = self._batch(one, 1, uncertainty, self._references)
            return found
        return self._each(_several(images), batch_size, uncertainty, dict(self._references))

    def _each(
        self,
        images: Iterable[ImageLike],
        batch_size: int,
        uncertainty: bool,
        references: Mapping[str, References],
    ) -> Iterator[Segmentation]:
        pixels = (read(image, f"images[{i}]") for i, image in enumerate(images))
        ended: Exception | None = None
        while ended is None:
            part = []
            try:
                for image in itertools.islice(pixels, batch_size):
                    part.append(image)
            except Exception as error:  # raised when those before it have been given
                ended = error
            if not part:
                break
            yield from self._batch(part, batch_size, uncertainty, references)
        if ended:
            raise ended

    def _encoded(self, image: ImageLike, annotation: dict[str, Any]) -> References:
        pixels = read(image)
        height, width, _ = pixels.shape
        mask = given_annotation((height, width), self.image_size, **annotation)
        square = resize_image(pixels, self.image_size)
        # With any other rule, most points and thin strokes would vanish.
        thin = annotation["mask"] is None and annotation["box"] is None
        rule = "coverage" if thin else None
        found = _encode_reference(
            self._tree, self._leaves, square[None], mask[None], self._cells, rule
        )
        if not found.mask.any():
            rows, cols = self._cells
            raise UserError(
                f"the annotation vanishes at {rows} x {cols}, the size of the backbone's features: "
                "annotate a larger region, pass it as scribble, or crop the picture to it"
            )
        return found

    def _batch(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        batch_size: int,
        uncertainty: bool,
        references: Mapping[str, References],
    ) -> list[Segmentation]:
        side = self.image_size
        squares = np.zeros((batch_size, side, side, 3), np.uint8)
        for i, image in enumerate(images):
            squares[i] = resize_image(image, side)
        targets = _encode_targets(self._tree, self._leaves, squares)
        # All classes are dispatched before waiting for the first result.
        found = [
            _predict(self._tree, self._leaves, targets, one, side) for one in references.values()
        ]
        logits, expected_iou = map(np.stack, zip(*jax.device_get(found), strict=True))
        return [
            self._finished(
                logits[:, i], expected_iou[:, i], image.shape[:2], tuple(references), uncertainty
            )
            for i, image in enumerate(images)
        ]

    def _finished(
        self,
        logits: Float[np.ndarray, "c h w"],
        expected_iou: Float[np.ndarray, " c"],
        size: tuple[int, int],
        classes: tuple[str, ...],
        uncertainty: bool,
    ) -> Segmentation:
        """Resizes what is predicted for one picture to its own size.

        It is bilinear with aligned corners, as in VRP-SAM's code, and runs on the host, because a
        device would have to compile it for every picture size.
        """
        rows, cols = (resize.bilinear_weights(self.image_size, n, align_corners=True) for n in size)
        logits = rows @ logits @ cols.T
        masks = foreground(logits)
        label_map = logits.argmax(0).astype(np.int32)  # then in place: large pictures fill memory
        label_map += 1
        label_map[~masks.any(0)] = 0
        return Segmentation(
            classes=classes,
            masks=masks,
            label_map=label_map,
            expected_iou=expected_iou,
            uncertainty=calibration.entropy(logits) if uncertainty else None,
        )


def _is_one(images: Any) -> bool:
    a_file = isinstance(images, str | os.PathLike | Image.Image)
    return a_file or getattr(images, "ndim", 0) in (2, 3)  # an array of 4 axes is a batch


def _several(images: Any) -> Iterable[ImageLike]:
    none = bytes | bytearray | Mapping | io.IOBase  # of which Python would make something
    is_scalar = getattr(images, "ndim", None) == 0
    if not isinstance(images, Iterable) or isinstance(images, none) or is_scalar:
        raise UserError(
            f"images is a {type(images).__name__}: pass a picture (path, Pillow image or array of "
            "height x width x 3) or a list of them"
        )
    return images


@functools.partial(jax.jit, static_argnames=("tree", "size", "downsample"))
def _encode_reference(
    tree: Any,
    leaves: list[Array],
    images: UInt8[Array, "r h w 3"],
    annotated: Bool[Array, "r h w"],
    size: tuple[int, int],
    downsample: str | None,
) -> References:
    prosam = jax.tree.unflatten(tree, leaves)
    return References(*prosam.encode_references(images, annotated, size, downsample))


@functools.partial(jax.jit, static_argnames="tree")
def _encode_targets(tree: Any, leaves: list[Array], images: UInt8[Array, "b h w 3"]) -> Targets:
    return Targets(*jax.tree.unflatten(tree, leaves).encode_targets(images))


@functools.partial(jax.jit, static_argnames=("tree", "side"))
def _predict(
    tree: Any, leaves: list[Array], targets: Targets, references: References, side: int
) -> Prediction:
    prosam = jax.tree.unflatten(tree, leaves)
    return inference.predict(prosam, targets, references, (side, side))
