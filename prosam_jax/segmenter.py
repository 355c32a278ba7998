"""Visual reference segmentation as it is used: show an object in one picture, find it in others."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8
from PIL import Image

from prosam_jax import inference, model, resize
from prosam_jax.config import check_at_least
from prosam_jax.data.annotation import annotated
from prosam_jax.data.transforms import resize_image
from prosam_jax.equations import SAMPLERS, foreground
from prosam_jax.errors import UserError
from prosam_jax.images import ImageLike, Numbers, read
from prosam_jax.inference import Prediction, References, Targets
from prosam_jax.model import ProSAM
from prosam_jax.types import Posterior
from prosam_jax.weights import prompt_encoder


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one picture, in its own pixels; the first axis counts the classes.

    Attributes:
        classes: Their names, in the order in which they were shown.
        masks: Each class by itself; masks of several classes may overlap.
        label_map: One class for each pixel: number i + 1 for class i where its logit is the
            largest and above 0, and 0 where none is.
        scores: Mean probability of the foreground inside each mask, 0 if it is empty.
        predicted_iou: The IoU that SAM expects of each mask. SAM learned to say so of clicks and
            boxes, so it orders masks better than it measures them.
        uncertainty: In [0, 1], how far masks of sampled prompts disagree: mutual information in
            bits (`inference.disagreement`). None if it was not asked for.
    """

    classes: tuple[str, ...]
    masks: Bool[np.ndarray, "c H W"]
    label_map: Int32[np.ndarray, "H W"]
    scores: Float[np.ndarray, " c"]
    predicted_iou: Float[np.ndarray, " c"]
    uncertainty: Float[np.ndarray, "c H W"] | None


class Segmenter:
    """Finds in pictures what references show.

        seg = Segmenter.from_pretrained("prosam-shapes")
        seg.set_reference("cat.jpg", mask="cat.png")
        found = seg.segment("other.jpg")

    Every picture is brought to the model's square, as in training, and its masks back to its own
    size. So it compiles once for single pictures, once for batches, and once more for every
    number of references that a class has.
    """

    def __init__(self, prosam: ProSAM, image_size: int):
        """A segmenter of a model that was trained on squares of `image_size` pixels."""
        self.model = prosam
        self.image_size = image_size
        # Flattened once: to walk the modules at every call takes longer than a small decoder.
        self._leaves, self._tree = jax.tree.flatten(prosam)
        square = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        merged, _ = jax.eval_shape(prosam.backbone.trunk, square)
        self._cells: tuple[int, int] = merged.shape[1:3]
        self._references: dict[str, References] = {}

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str] = prompt_encoder.DEFAULT, **overrides: Any
    ) -> "Segmenter":
        """A segmenter with a trained model; arguments and errors as of `ProSAM.from_pretrained`."""
        built, cfg = model.load(name, overrides)
        return cls(built, cfg.data.image_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that were shown, in that order."""
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
        """Shows what a class is, in place of what was shown of it before.

        Exactly one of mask, points, box and scribble tells where. Other classes stay.

        Args:
            image: An array of height x width, or height x width x 1, 3 or 4 (alpha is left out),
                of uint8 or of floats in 0-1; a Pillow image or the path of one, whose EXIF
                rotation is applied.
            mask: The object, as large as the picture: an array of bool, of floats in 0-1, or of
                integers (0 and one other number); or a picture of it, white on black.
            points: N x 2, x and y in pixels of the picture, on the object.
            box: x0, y0, x1, y1 in pixels of the picture, around the object.
            scribble: Strokes on the object, given like a mask.
            label: Name of the class.

        Raises:
            ValueError: The picture cannot be read, or the annotation is not valid; the message says
                why.
            FileNotFoundError: There is no such file.
        """
        cues = {"mask": mask, "points": points, "box": box, "scribble": scribble}
        self._references[label] = self._encoded(image, cues)

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
        """Shows a class once more (k-shot); all else as `set_reference`."""
        cues = {"mask": mask, "points": points, "box": box, "scribble": scribble}
        new = self._encoded(image, cues)
        if label in self._references:
            held = self._references[label]
            new = jax.tree.map(lambda *xs: jnp.concatenate(xs), held, new)
        self._references[label] = new

    def reset(self) -> None:
        """Forgets all references."""
        self._references = {}

    @overload
    def segment(
        self,
        images: ImageLike,
        *,
        uncertainty: bool = ...,
        samples: int = ...,
        batch_size: int = ...,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        images: Iterable[ImageLike],
        *,
        uncertainty: bool = ...,
        samples: int = ...,
        batch_size: int = ...,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        uncertainty: bool = False,
        samples: int = 10,
        batch_size: int = 4,
    ) -> Segmentation | list[Segmentation]:
        """Finds what the references show.

        Args:
            images: A picture, given as for `set_reference`, or several pictures of any sizes,
                such as a list or `folder.glob("*.jpg")`.
            uncertainty: Whether to add the uncertainty maps.
            samples: How many sampled masks they are made of; always the same samples.
            batch_size: Pictures of a list that are taken at a time; the last are padded to as
                many. It changes time and memory only.

        Returns:
            What was found in the picture, or a list of that.

        Raises:
            ValueError: No reference is set, a picture cannot be read, or uncertainty is wanted
                of a deterministic model.
            FileNotFoundError: There is no such file.
        """
        if not self._references:
            raise UserError("no reference is set: call set_reference first")
        check_at_least("batch_size", batch_size, 1)
        if uncertainty:
            check_at_least("samples", samples, 2)
            if (name := self.model.distribution.name) not in SAMPLERS:
                raise UserError(
                    f"a model with distribution.name={name} has one mask for each picture and no "
                    f"uncertainty; use one that was trained with {' or '.join(SAMPLERS)}"
                )
        k = samples if uncertainty else 0
        one = _is_one(images)
        listed = _listed([images] if one else images)
        step = 1 if one else batch_size
        found = []
        for i in range(0, len(listed), step):
            part = listed[i : i + step]
            names = ["image"] if one else [f"images[{i + j}]" for j in range(len(part))]
            found += self._batch(list(map(read, part, names)), step, k)
        return found[0] if one else found

    def _encoded(self, image: ImageLike, cues: dict[str, Any]) -> References:
        pixels = read(image)
        height, width, _ = pixels.shape
        marked = annotated((height, width), self.image_size, **cues)
        square = resize_image(pixels, self.image_size)
        # Most points and thin strokes would vanish under any other rule.
        rule = "coverage" if cues["mask"] is None and cues["box"] is None else None
        found = _encode_reference(
            self._tree, self._leaves, square[None], marked[None], self._cells, rule
        )
        if not found.mask.any():
            rows, cols = self._cells
            raise UserError(
                f"the mark is lost at {rows} x {cols}, the size of the backbone's features: mark a "
                "larger region, pass it as scribble, or cut the picture to it"
            )
        return found

    def _batch(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], batch_size: int, samples: int
    ) -> list[Segmentation]:
        side = self.image_size
        squares = np.zeros((batch_size, side, side, 3), np.uint8)
        for i, image in enumerate(images):
            squares[i] = resize_image(image, side)
        targets = _encode_targets(self._tree, self._leaves, squares)
        # All classes are sent off before the first is waited for.
        found = [
            self._predicted(targets, references, samples)
            for references in self._references.values()
        ]
        stacked = [np.stack(xs) for xs in zip(*jax.device_get(found), strict=True)]
        return [
            self._finished([x[:, i] for x in stacked], image.shape[:2])
            for i, image in enumerate(images)
        ]

    def _predicted(
        self, targets: Targets, references: References, samples: int
    ) -> tuple[Array, ...]:
        """Logits, score and expected IoU of one class, and the uncertainty if there are samples."""
        side = self.image_size
        posterior, *found = _predict(self._tree, self._leaves, targets, references, side)
        if samples:
            embeddings = targets.image_embeddings
            found.append(_vary(self._tree, self._leaves, embeddings, posterior, side, samples))
        return tuple(found)

    def _finished(self, found: list[np.ndarray], size: tuple[int, int]) -> Segmentation:
        """Brings what `_predicted` says of one picture, classes first, to its own size.

        Bilinearly with aligned corners, as VRP-SAM's code does. On the host, because a device
        would compile it anew for every size of a picture.
        """
        rows, cols = (resize.bilinear_weights(self.image_size, n, align_corners=True) for n in size)
        logits, scores, iou, *uncertainty = found
        logits = rows @ logits @ cols.T
        masks = foreground(logits)
        return Segmentation(
            classes=self.classes,
            masks=masks,
            label_map=np.where(masks.any(0), logits.argmax(0) + 1, 0).astype(np.int32),
            scores=scores,
            predicted_iou=iou,
            uncertainty=np.clip(rows @ uncertainty[0] @ cols.T, 0, 1) if uncertainty else None,
        )


def _is_one(images: Any) -> bool:
    a_file = isinstance(images, str | os.PathLike | Image.Image)
    return a_file or getattr(images, "ndim", 0) in (2, 3)  # 4 axes are a batch


def _listed(images: Any) -> list[ImageLike]:
    if not isinstance(images, Iterable) or isinstance(images, bytes | bytearray | Mapping):
        raise UserError(
            f"images is of {type(images).__name__}: pass a picture (path, Pillow image or array of "
            "height x width x 3) or a list of them"
        )
    return list(images)


@functools.partial(jax.jit, static_argnames=("tree", "size", "downsample"))
def _encode_reference(
    tree: Any,
    leaves: list[Array],
    images: UInt8[Array, "r h w 3"],
    marked: Bool[Array, "r h w"],
    size: tuple[int, int],
    downsample: str | None,
) -> References:
    prosam = jax.tree.unflatten(tree, leaves)
    return References(*prosam.encode_references(images, marked, size, downsample))


@functools.partial(jax.jit, static_argnames="tree")
def _encode_targets(tree: Any, leaves: list[Array], images: UInt8[Array, "b h w 3"]) -> Targets:
    return Targets(*jax.tree.unflatten(tree, leaves).encode_targets(images))


@functools.partial(jax.jit, static_argnames=("tree", "side"))
def _predict(
    tree: Any, leaves: list[Array], targets: Targets, references: References, side: int
) -> Prediction:
    prosam = jax.tree.unflatten(tree, leaves)
    return inference.predict(prosam, targets, references, (side, side))


@functools.partial(jax.jit, static_argnames=("tree", "side", "samples"))
def _vary(
    tree: Any,
    leaves: list[Array],
    embeddings: Float[Array, "b i j e"],
    posterior: Posterior,
    side: int,
    samples: int,
) -> Float[Array, "b h w"]:
    prosam = jax.tree.unflatten(tree, leaves)
    return inference.uncertainty(
        prosam, embeddings, posterior, (side, side), samples, jax.random.key(0)
    )
