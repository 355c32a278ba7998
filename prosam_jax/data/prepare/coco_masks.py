"""COCO's annotations as masks of class numbers.

Crowds come first, as 255: a crowd's region takes in what lies between its objects, and COCO's own
scores leave it out. Then come the objects in the order of the annotation file, each over those
before it, which is the order of the field's public script (of RePRI, arXiv 2012.06166); that one
draws the first polygon of an object only, this all. Classes are numbered 1-80 by category id.
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
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError


class Object(NamedTuple):
    """An annotation: class 1-80, whether it is a crowd, polygons or run lengths."""

    class_id: int
    is_crowd: bool
    segmentation: Any


class Annotated(NamedTuple):
    """An image of an annotation file: its file's name, height, width and objects."""

    file_name: str
    height: int
    width: int
    objects: list[Object]


def read_annotations(path: pathlib.Path) -> list[Annotated]:
    """The images of an `instances_*.json` in order of their names.

    Raises:
        UserError: The file is damaged, or not one of COCO's.
    """
    try:
        held = json.loads(path.read_bytes())
        categories = sorted(held["categories"], key=lambda category: category["id"])
        if tuple(category["name"] for category in categories) != COCO_20I.class_names:
            raise UserError("its categories are not COCO's 80")
        class_of = {category["id"]: c for c, category in enumerate(categories, 1)}
        objects = defaultdict(list)
        for a in held["annotations"]:
            found = Object(class_of[a["category_id"]], bool(a["iscrowd"]), a["segmentation"])
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
            f"{path} is damaged or no annotation file of COCO ({type(error).__name__}: {error}); "
            "delete it and unpack it again"
        ) from error


def paint(objects: Sequence[Object], height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """The mask of an image."""
    from pycocotools import mask as run_lengths  # an extra, needed here only

    labels = np.zeros((height, width), np.uint8)
    for item in sorted(objects, key=lambda item: not item.is_crowd):
        codes = item.segmentation
        if isinstance(codes, list) or isinstance(codes["counts"], list):
            codes = run_lengths.frPyObjects(codes, height, width)
        if isinstance(codes, list):
            codes = run_lengths.merge(codes)
        labels[run_lengths.decode(codes).astype(bool)] = IGNORE if item.is_crowd else item.class_id
    return labels


def write_mask(job: tuple[pathlib.Path, Annotated]) -> None:
    """Writes the mask of an image to a path."""
    path, image = job
    with writing(path) as file:
        Image.fromarray(paint(image.objects, image.height, image.width)).save(file, "PNG")
