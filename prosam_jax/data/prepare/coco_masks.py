"""Converts COCO's annotations to masks of class numbers.

Crowds are painted first, as 255, because a crowd's region includes what is between its objects and
COCO's own metrics ignore it. Objects follow in the order of the annotation file, later ones over
earlier ones, as in the public script that the field uses (from RePRI, arXiv 2012.06166); that
script paints only the first polygon of an object, this module all of them. Classes are numbered
1-80 by category id.
"""

import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prosam_jax.atomic import writing
from prosam_jax.data.folds import COCO_20I
from prosam_jax.data.prepare.objects import fill, is_crowd, outline
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError


class Object(NamedTuple):
    """An annotation: its class number, whether it is a crowd, and its polygons or run lengths."""

    class_id: int
    is_crowd: bool
    segmentation: Any


class Annotated(NamedTuple):
    """An image of an annotation file: its file name, height, width and objects."""

    file_name: str
    height: int
    width: int
    objects: list[Object]


def read_annotations(path: pathlib.Path) -> list[Annotated]:
    """The images of an `instances_*.json`, sorted by name.

    Raises:
        UserError: The file is damaged, or not an annotation file of COCO.
    """
    try:
        held = json.loads(path.read_bytes())
        categories = sorted(held["categories"], key=lambda category: category["id"])
        if tuple(category["name"] for category in categories) != COCO_20I.class_names:
            raise UserError("its categories are not COCO's 80")
        class_of = {category["id"]: c for c, category in enumerate(categories, 1)}
        objects = defaultdict(list)
        for a in held["annotations"]:
            found = Object(class_of[a["category_id"]], is_crowd(a["iscrowd"]), a["segmentation"])
            objects[a["image_id"]].append(found)
        images = sorted(held["images"], key=lambda image: image["file_name"])
        return [
            Annotated(
                pathlib.PurePath(image["file_name"]).name,
                image["height"],
                image["width"],
                objects[image["id"]],
            )
            for image in images
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or not a COCO annotation file ({type(error).__name__}: {error}); "
            "delete it and unpack it again"
        ) from error


def paint(objects: Sequence[Object], height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """The mask of an image: class numbers, 0 for background, 255 for crowds.

    Raises:
        UserError: An outline is not valid.
    """
    labels = np.zeros((height, width), np.uint8)
    for item in sorted(objects, key=lambda item: not item.is_crowd):
        inside = fill(outline(item.segmentation), (width, height))
        labels[inside] = IGNORE if item.is_crowd else item.class_id
    return labels


def write_mask(job: tuple[pathlib.Path, Annotated]) -> None:
    """Writes an image's mask to the path that comes with it in `job`.

    Raises:
        UserError: An outline is not valid.
    """
    path, image = job
    try:
        labels = paint(image.objects, image.height, image.width)
    except UserError as reason:
        raise UserError(
            f"the annotation file is damaged: an object of {image.file_name} {reason}; delete it "
            "and unpack it again"
        ) from None
    with writing(path) as file:
        Image.fromarray(labels).save(file, "PNG")
