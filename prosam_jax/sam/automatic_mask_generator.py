"""Everything that SAM finds in a picture: a grid of clicks, of whose masks the good ones are kept.

Names, arguments, filters and records are those of `segment_anything.SamAutomaticMaskGenerator`
(Kirillov et al. 2023, arXiv 2304.02643, appendix B).
"""

import dataclasses
import functools
import itertools
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Bool, Float, Int, UInt8

from prosam_jax import images
from prosam_jax.config import check_at_least, check_choice
from prosam_jax.equations import foreground
from prosam_jax.errors import UserError, short
from prosam_jax.images import ImageLike, Numbers
from prosam_jax.resize import HIGHEST
from prosam_jax.run_lengths import as_text, mask_of, run_lengths
from prosam_jax.sam.model import Sam
from prosam_jax.sam.predictor import SamPredictor
from prosam_jax.sam.transforms import ResizeLongestSide

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
CANVAS = 128  # sides of what is compiled are multiples of it, so that most sizes share a program
EDGE = 20  # pixels from a crop's edge at which a mask counts as cut off


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A mask of the picture, with what a record says about it; coordinates are the picture's."""

    counts: list[int]
    box: tuple[int, int, int, int]
    iou: float
    stability: float
    point: list[float]
    crop: tuple[int, int, int, int]


class SamAutomaticMaskGenerator:
    """Masks of everything in a picture.

    Args:
        model: The SAM, such as `SamPredictor.from_pretrained("sam_vit_h").model`.
        points_per_side: Clicks along each side of the picture; None if `point_grids` are given.
        points_per_batch: Clicks that are decoded at a time; fewer need less memory.
        pred_iou_thresh: Masks stay whose IoU, as SAM expects it, is above this; 0 or less for all.
        stability_score_thresh: Masks stay whose stability is at least this; 0 or less for all.
            Stability is the IoU of the masks at a lower and a higher threshold of the logits.
        stability_score_offset: How much lower and higher these thresholds are.
        box_nms_thresh: Of masks of one crop whose boxes have a higher IoU, the one with the
            highest expected IoU stays.
        crop_n_layers: Layers of crops that are searched in addition to the picture; layer i has
            2^i x 2^i crops.
        crop_nms_thresh: The same as `box_nms_thresh` for masks of different crops, of which that of
            the smallest crop stays.
        crop_overlap_ratio: Overlap of the first layer's crops, as a share of the picture's shorter
            side; in layer i it is 2^(i - 1) times smaller.
        crop_n_points_downscale_factor: Clicks along each side in layer i are `points_per_side`
            divided by this to the power of i.
        point_grids: Instead of `points_per_side`, for the picture and each layer: N x 2 clicks, x
            and y in 0-1.
        min_mask_region_area: Holes and islands of fewer pixels are filled and removed; 0 for none.
        output_mode: Form of the masks: "binary_mask", "uncompressed_rle" or "coco_rle". Use one of
            the latter for large pictures.

    Raises:
        UserError: An argument is out of its range, or both or neither of `points_per_side` and
            `point_grids` are given.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Numbers] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ):
        if not isinstance(model, Sam):
            raise UserError(
                f"model={short(model)} is no Sam: pass SamPredictor's `model`, or call "
                "SamAutomaticMaskGenerator.from_pretrained"
            )
        _check_whole("points_per_batch", points_per_batch, 1)
        _check_whole("crop_n_layers", crop_n_layers, 0)
        _check_whole("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1)
        for name, value in (
            ("pred_iou_thresh", pred_iou_thresh),
            ("stability_score_thresh", stability_score_thresh),
        ):
            _number(name, value)
        for name, value in (
            ("stability_score_offset", stability_score_offset),
            ("box_nms_thresh", box_nms_thresh),
            ("crop_nms_thresh", crop_nms_thresh),
            ("crop_overlap_ratio", crop_overlap_ratio),
            ("min_mask_region_area", min_mask_region_area),
        ):
            check_at_least(name, _number(name, value), 0)
        if crop_overlap_ratio > 1:
            raise UserError(f"crop_overlap_ratio={crop_overlap_ratio} must be at most 1")
        check_choice("output_mode", output_mode, OUTPUT_MODES)
        if (points_per_side is None) == (point_grids is None):
            given = "neither" if point_grids is None else f"{points_per_side=} and point_grids"
            raise UserError(
                f"{given} given: pass points_per_side, or points_per_side=None and point_grids"
            )
        if points_per_side is not None:
            _check_whole("points_per_side", points_per_side, 1)
            point_grids = _grids(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
        self.point_grids = _checked(point_grids or [], crop_n_layers)
        self.predictor = SamPredictor(model)
        self._leaves, self._tree = jax.tree.flatten(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        sam: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> "SamAutomaticMaskGenerator":
        """A generator with trained weights.

        Args:
            name: As for `SamPredictor.from_pretrained`.
            sam: Settings of the SAM that differ, such as `{"dtype": "bfloat16"}`.
            settings: Arguments of this class other than the model.

        Raises:
            UserError: As in `SamPredictor.from_pretrained`, or for an argument.
        """
        changes = {"sam": sam} if sam else {}
        return cls(SamPredictor.from_pretrained(name, **changes).model, **settings)

    def generate(self, image: ImageLike) -> list[dict[str, Any]]:
        """Masks of everything in a picture.

        Args:
            image: As for `SamPredictor.set_image`.

        Returns:
            A record for each mask:

            * segmentation: bool of height x width, or run lengths: {"size": [height, width],
              "counts": a list, or text if "coco_rle"}.
            * area: Its pixels.
            * bbox: [x, y, width, height], where width and height are from the first to the last
              pixel, one less than in COCO, as in `segment_anything`.
            * predicted_iou: The IoU that SAM expects of it.
            * point_coords: [[x, y]], the click.
            * stability_score: Its stability; NaN for an empty mask, which only stays if
              `stability_score_thresh` is 0.
            * crop_box: [x, y, width, height] of the crop in which it was found.

            The best are first: by expected IoU; with crops, first by smaller crops; with
            `min_mask_region_area`, those first which it left as they were.

        Raises:
            UserError: The picture cannot be read.
            FileNotFoundError: There is no such file.
        """
        pixels = images.read(image)
        size = pixels.shape[0], pixels.shape[1]
        crops = list(_crops(size, self.crop_n_layers, self.crop_overlap_ratio))
        found = [x for layer, crop in crops for x in self._found(pixels, crop, layer)]
        self.predictor.reset_image()
        if len(crops) > 1:
            areas = [(x.crop[2] - x.crop[0]) * (x.crop[3] - x.crop[1]) for x in found]
            found = _best(found, 1 / np.array(areas, np.float32), self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            thresh = max(self.box_nms_thresh, self.crop_nms_thresh)
            tidied = [_tidied(x, size, self.min_mask_region_area) for x in found]
            unchanged = np.array([not changed for _, changed in tidied], np.float32)
            found = _best([mask for mask, _ in tidied], unchanged, thresh)
        return [self._record(x, size) for x in found]

    def _found(
        self, pixels: UInt8[np.ndarray, "H W 3"], crop: tuple[int, int, int, int], layer: int
    ) -> list[_Mask]:
        """Masks of a crop, without duplicates."""
        left, top, right, bottom = crop
        part = pixels[top:bottom, left:right]
        height, width = part.shape[:2]
        self.predictor.set_image(part)
        embedding = self.predictor.get_image_embedding()
        frame = ResizeLongestSide.fit((height, width), self.predictor.model.cfg)
        rows, cols = (jnp.asarray(_padded(x)) for x in (frame.rows, frame.cols))
        shape, offset = np.array([height, width]), np.float32(self.stability_score_offset)
        clicks = self.point_grids[layer] * np.array([[width, height]])
        step = min(self.points_per_batch, len(clicks))
        parts = []
        for first in range(0, len(clicks), step):
            batch = clicks[first : first + step]
            # The last batch repeats its last click, so that its shape is that of the others.
            inputs = frame.apply_coords(np.pad(batch, ((0, step - len(batch)), (0, 0)), "edge"))
            logits, iou = _decode(self._tree, self._leaves, embedding, inputs[:, None])
            wanted = np.full(iou.shape, True)
            if self.pred_iou_thresh > 0:
                wanted = np.asarray(iou) > self.pred_iou_thresh
            wanted[len(batch) :] = False
            if not wanted.any():
                continue
            measured = _measure(logits, wanted, rows, cols, shape, offset)
            stability, boxes = map(np.asarray, measured)
            keep = wanted & ~_cut_off(boxes, crop, pixels.shape)
            if self.stability_score_thresh > 0:
                keep &= stability >= self.stability_score_thresh
            which = np.nonzero(keep)[0]
            values = (logits, iou, stability, boxes)
            parts.append((batch[which], *(np.asarray(x)[keep] for x in values)))
        if not parts:
            return []
        points, logits, iou, stability, boxes = map(np.concatenate, zip(*parts, strict=True))
        masks = []
        for i in nms(boxes, iou, self.box_nms_thresh):
            # Only now, one at a time: a batch of masks of a large picture would fill the memory.
            mask = np.zeros(pixels.shape[:2], np.bool_)
            canvas = np.asarray(_at_full_size(logits[i], rows, cols))
            mask[top:bottom, left:right] = canvas[:height, :width]
            masks.append(
                _Mask(
                    run_lengths(mask),
                    _box(mask),
                    iou[i].item(),
                    stability[i].item(),
                    (points[i] + (left, top)).tolist(),
                    crop,
                )
            )
        return masks

    def _record(self, mask: _Mask, size: tuple[int, int]) -> dict[str, Any]:
        segmentation: Any = {"size": list(size), "counts": mask.counts}
        if self.output_mode == "coco_rle":
            segmentation["counts"] = as_text(mask.counts)
        elif self.output_mode == "binary_mask":
            segmentation = mask_of(mask.counts, size)
        return {
            "segmentation": segmentation,
            "area": sum(mask.counts[1::2]),
            "bbox": _with_sides(mask.box),
            "predicted_iou": mask.iou,
            "point_coords": [mask.point],
            "stability_score": mask.stability,
            "crop_box": _with_sides(mask.crop),
        }


# On the device ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="tree")
def _decode(
    tree: Any,
    leaves: list[Array],
    embedding: Float[Array, "1 h w c"],
    points: Float[Array, "b 1 2"],
) -> tuple[Float[Array, "b m H W"], Float[Array, "b m"]]:
    """Low-resolution logits and expected IoU of a batch of clicks on one image."""
    sam = jax.tree.unflatten(tree, leaves)
    labels = jnp.ones(points.shape[:2], jnp.int32)
    sparse, dense = sam.prompt_encoder(points=points, labels=labels)
    embedding = jnp.broadcast_to(embedding, (len(points), *embedding.shape[1:]))
    return sam.decode(embedding, sparse, dense, multimask_output=True)


@jax.jit
def _measure(
    logits: Float[Array, "b m h w"],
    wanted: Bool[Array, "b m"],
    rows: Float[Array, "H h"],
    cols: Float[Array, "W w"],
    size: Int[Array, "2"],
    offset: Float[Array, ""],
) -> tuple[Float[Array, "b m"], Int[Array, "b m 4"]]:
    """Stability and box of the wanted masks at the size of the image; zeros for the others.

    One mask after the other, so that memory is that of one mask and unwanted ones cost nothing.

    Args:
        logits: In low resolution.
        wanted: Which masks to measure.
        rows: Matrix that resizes rows to those of the image, then zeros.
        cols: The same for columns.
        size: (height, width) of the image. It is data, so that sizes share a program.
        offset: Of the two thresholds of the stability.

    Returns:
        The stability, and x0, y0, x1, y1 of the first and the last pixel, zeros if there is none.
    """
    inside = (jnp.arange(len(rows)) < size[0])[:, None] & (jnp.arange(len(cols)) < size[1])[None]

    def measured(low: Float[Array, "h w"]) -> tuple[Float[Array, ""], Int[Array, "4"]]:
        full = jnp.where(inside, _resized(low, rows, cols), -jnp.inf)
        high, wide = ((full > x).sum() for x in (offset, -offset))
        mask = foreground(full)
        (top, bottom), (left, right) = (_ends(mask.any(axis)) for axis in (1, 0))
        return high / wide, jnp.stack([left, top, right, bottom]) * mask.any()

    def nothing(low: Float[Array, "h w"]) -> tuple[Float[Array, ""], Int[Array, "4"]]:
        del low
        return jnp.zeros(()), jnp.zeros(4, jnp.int32)

    flat = wanted.ravel(), logits.reshape(-1, *logits.shape[2:])
    stability, boxes = jax.lax.map(lambda x: jax.lax.cond(x[0], measured, nothing, x[1]), flat)
    return stability.reshape(wanted.shape), boxes.reshape(*wanted.shape, 4)


@jax.jit
def _at_full_size(
    logits: Float[Array, "h w"], rows: Float[Array, "H h"], cols: Float[Array, "W w"]
) -> Bool[Array, "H W"]:
    return foreground(_resized(logits, rows, cols))


def _resized(
    logits: Float[Array, "h w"], rows: Float[Array, "H h"], cols: Float[Array, "W w"]
) -> Float[Array, "H W"]:
    x = jnp.matmul(rows, logits, precision=HIGHEST)
    return jnp.matmul(x, cols.T, precision=HIGHEST)


def _ends(line: Bool[Array, " n"]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The first and the last index that is True."""
    return jnp.argmax(line), len(line) - 1 - jnp.argmax(line[::-1])


def _padded(weights: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "N m"]:
    return np.pad(weights, ((0, -len(weights) % CANVAS), (0, 0)))


# On the host -----------------------------------------------------------------------------------


def nms(
    boxes: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], threshold: float
) -> list[int]:
    """Non-maximum suppression, as `torchvision.ops.nms` on a CPU.

    The box with the highest score stays, boxes whose IoU with it is above the threshold go, and so
    on with the rest. Boxes without an area stay.

    Args:
        boxes: x0, y0, x1, y1; their area is (x1 - x0) (y1 - y0).
        scores: Of equal ones, the first counts as higher.
        threshold: Of the IoU.

    Returns:
        Indices of the boxes that stay, by falling scores.
    """
    corners = boxes.astype(np.float32)  # torchvision's precision
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    rest = np.argsort(-scores, kind="stable")
    kept = []
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        low = np.maximum(corners[rest, :2], corners[best : best + 1, :2])
        high = np.minimum(corners[rest, 2:], corners[best : best + 1, 2:])
        overlap = np.maximum(high - low, 0).prod(1)
        with np.errstate(invalid="ignore"):  # 0 / 0
            iou = overlap / (areas[best] + areas[rest] - overlap)
        rest = rest[~(iou.astype(np.float64) > threshold)]
    return kept


def _best(masks: Sequence[_Mask], scores: Float[np.ndarray, " n"], threshold: float) -> list[_Mask]:
    boxes = np.array([x.box for x in masks], np.int64).reshape(-1, 4)
    return [masks[i] for i in nms(boxes, scores, threshold)]


def _crops(
    size: tuple[int, int], layers: int, overlap_ratio: float
) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """The picture and its crops, each with its layer: x0, y0, x1, y1, column by column."""
    height, width = size
    yield 0, (0, 0, width, height)
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / count))
        h, w = (math.ceil((overlap * (count - 1) + side) / count) for side in size)
        for i, j in itertools.product(range(count), repeat=2):
            x, y = i * (w - overlap), j * (h - overlap)
            if x < width and y < height:  # rounding up may use up a tiny picture early
                yield layer, (x, y, min(x + w, width), min(y + h, height))


def _cut_off(
    boxes: Int[np.ndarray, "b m 4"], crop: tuple[int, int, int, int], shape: tuple[int, ...]
) -> Bool[np.ndarray, "b m"]:
    """Which boxes, in pixels of the crop, end near an edge of it that is none of the picture."""
    left, top, *_ = crop
    placed = boxes + np.array([[[left, top, left, top]]])
    whole = np.array([[[0, 0, shape[1], shape[0]]]])
    near_crop = np.abs(placed - np.array([[crop]])) <= EDGE
    return np.any(near_crop & ~(np.abs(placed - whole) <= EDGE), axis=-1)


def _tidied(mask: _Mask, size: tuple[int, int], least: float) -> tuple[_Mask, bool]:
    """The mask without holes and islands of fewer than `least` pixels, and whether it has any.

    If all islands are small, the largest one stays.
    """
    pixels = mask_of(mask.counts, size)
    holes, small_holes = _regions(~pixels, least)
    pixels |= small_holes[holes]
    islands, small = _regions(pixels, least)
    changed = bool(small_holes.any() or small.any())
    if small[1:].all() and len(small) > 1:
        sizes = np.bincount(islands.ravel())[1:]
        rows, cols = np.nonzero(np.isin(islands, 1 + np.flatnonzero(sizes == sizes.max())))
        # Of equal ones OpenCV's first, which meets them in blocks of 2 x 2.
        first = np.lexsort((cols // 2, rows // 2))[0]
        small[islands[rows[first], cols[first]]] = False
    pixels &= ~small[islands]
    return dataclasses.replace(mask, counts=run_lengths(pixels), box=_box(pixels)), changed


def _regions(
    pixels: Bool[np.ndarray, "h w"], least: float
) -> tuple[Int[np.ndarray, "h w"], Bool[np.ndarray, " n"]]:
    """Connected regions, diagonals included: their numbers, from 1, and which of them are small."""
    numbered = np.zeros(pixels.shape, np.int32)
    scipy.ndimage.label(pixels, np.ones((3, 3)), output=numbered)
    small = np.bincount(numbered.ravel()) < least
    small[0] = False  # all that is in no region
    return numbered, small


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the first and the last pixel, zeros if there is none."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])


def _with_sides(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _grids(side: int, layers: int, factor: int) -> list[Float[np.ndarray, "n 2"]]:
    """Clicks in the middle of the cells of a grid for the picture and each layer, row by row."""
    grids = []
    for layer in range(layers + 1):
        count = int(side / factor**layer)
        if count < 1:
            raise UserError(
                f"points_per_side={side} leaves no click in layer {layer} with "
                f"crop_n_points_downscale_factor={factor}: pass at least {factor**layers}"
            )
        middle = np.linspace(1 / (2 * count), 1 - 1 / (2 * count), count)
        grids.append(np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2))
    return grids


def _checked(grids: Sequence[Numbers], layers: int) -> list[Float[np.ndarray, "n 2"]]:
    if len(grids) <= layers:
        raise UserError(
            f"point_grids has {len(grids)} grids for crop_n_layers={layers}: pass {layers + 1}, "
            "for the picture and each layer"
        )
    checked = []
    for i, grid in enumerate(grids):
        points = images.numbers(f"point_grids[{i}]", grid, (None, 2))
        if not len(points) or (points < 0).any() or (points > 1).any():
            raise UserError(f"point_grids[{i}] must have clicks with x and y in 0-1")
        checked.append(points)
    return checked


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise UserError(f"{name}={short(value)} must be a whole number")
    check_at_least(name, int(value), least)


def _number(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name}={short(value)} must be a finite number")
    return float(value)
