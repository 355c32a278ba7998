"""Visual reference segmentation as it is used: show an object in one picture, find it in others."""

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
            UserError: The picture cannot be read, or the annotation is not valid; the message says
                why.
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
        """Shows a class once more (k-shot); all else as `set_reference`."""
        given = {"mask": mask, "points": points, "box": box, "scribble": scribble}
        new = self._encoded(image, given)
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
    ) -> Iterator[Segmentation]: ...

    def segment(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        uncertainty: bool = False,
        samples: int = 10,
        batch_size: int = 4,
    ) -> Segmentation | Iterator[Segmentation]:
        """Finds what the references show.

        Args:
            images: A picture, given as for `set_reference`, or an iterable of pictures of any
                sizes, such as a list or `folder.glob("*.jpg")`, of which no more than a batch is
                in memory at a time.
            uncertainty: Whether to add the uncertainty maps.
            samples: How many sampled masks they are made of; always the same samples.
            batch_size: Pictures of an iterable that are taken at a time; the last are padded to
                as many. It changes time and memory only.

        Returns:
            What was found in the picture; for an iterable an iterator that gives it picture by
            picture, as it comes, with the references that were set when this was called. A bad
            picture ends it, after what comes before that one.

        Raises:
            UserError: No reference is set, a picture cannot be read, or uncertainty is wanted
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
        if _is_one(images):
            (found,) = self._batch([read(cast(ImageLike, images))], 1, k, self._references)
            return found
        return self._each(_several(images), batch_size, k, dict(self._references))

    def _each(
        self,
        images: Iterable[ImageLike],
        batch_size: int,
        samples: int,
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
            yield from self._batch(part, batch_size, samples, references)
        if ended:
            raise ended

    def _encoded(self, image: ImageLike, annotation: dict[str, Any]) -> References:
        pixels = read(image)
        height, width, _ = pixels.shape
        mask = annotated((height, width), self.image_size, **annotation)
        square = resize_image(pixels, self.image_size)
        # Most points and thin strokes would vanish under any other rule.
        thin = annotation["mask"] is None and annotation["box"] is None
        rule = "coverage" if thin else None
        found = _encode_reference(
            self._tree, self._leaves, square[None], mask[None], self._cells, rule
        )
        if not found.mask.any():
            rows, cols = self._cells
            raise UserError(
                f"nothing of the annotation is left at {rows} x {cols}, the size of the backbone's "
                "features: annotate a larger region, pass it as scribble, or cut the picture to it"
            )
        return found

    def _batch(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        batch_size: int,
        samples: int,
        references: Mapping[str, References],
    ) -> list[Segmentation]:
        side = self.image_size
        squares = np.zeros((batch_size, side, side, 3), np.uint8)
        for i, image in enumerate(images):
            squares[i] = resize_image(image, side)
        targets = _encode_targets(self._tree, self._leaves, squares)
        # All classes are sent off before the first is waited for.
        found = [self._predicted(targets, one, samples) for one in references.values()]
        stacked = [np.stack(xs) for xs in zip(*jax.device_get(found), strict=True)]
        return [
            self._finished([x[:, i] for x in stacked], image.shape[:2], tuple(references))
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

    def _finished(
        self, found: list[np.ndarray], size: tuple[int, int], classes: tuple[str, ...]
    ) -> Segmentation:
        """Brings what `_predicted` says of one picture, classes first, to its own size.

        Bilinearly with aligned corners, as VRP-SAM's code does. On the host, because a device
        would compile it anew for every size of a picture.
        """
        rows, cols = (resize.bilinear_weights(self.image_size, n, align_corners=True) for n in size)
        logits, scores, iou, *uncertainty = found
        logits = rows @ logits @ cols.T
        masks = foreground(logits)
        return Segmentation(
            classes=classes,
            masks=masks,
            label_map=np.where(masks.any(0), logits.argmax(0) + 1, 0).astype(np.int32),
            scores=scores,
            predicted_iou=iou,
            uncertainty=np.clip(rows @ uncertainty[0] @ cols.T, 0, 1) if uncertainty else None,
        )


def _is_one(images: Any) -> bool:
    a_file = isinstance(images, str | os.PathLike | Image.Image)
    return a_file or getattr(images, "ndim", 0) in (2, 3)  # 4 axes are a batch


def _several(images: Any) -> Iterable[ImageLike]:
    none = bytes | bytearray | Mapping | io.IOBase  # of which Python would make something
    is_scalar = getattr(images, "ndim", None) == 0
    if not isinstance(images, Iterable) or isinstance(images, none) or is_scalar:
        raise UserError(
            f"images is of {type(images).__name__}: pass a picture (path, Pillow image or array of "
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
