"""Converts COCO's annotations to masks of class numbers.

Crowds are painted first, as 255, because a crowd's region includes what is between its objects and
COCO's own metrics ignore it. Objects follow in the order of the annotation file, later ones over
earlier ones, as in the public script that the field uses (from RePRI, arXiv 2012.06166); that
script paints only the first polygon of an object, this module all of them. Classes are numbered
1-80 by category id.
"""

import itertools
import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prosam_jax.atomic import writing
from prosam_jax.data.folds import COCO_20I
from prosam_jax.data.prepare.objects import MOST_PIXELS, fill, is_crowd, outline
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError, cut, short
from prosam_jax.json_files import parse_object


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
        held = parse_object(path.read_bytes())
        categories = sorted(held["categories"], key=lambda category: category["id"])
        if tuple(category["name"] for category in categories) != COCO_20I.class_names:
            raise UserError("its categories are not COCO's 80")
        class_of = {category["id"]: c for c, category in enumerate(categories, 1)}
        objects = defaultdict(list)
        for a in held["annotations"]:
            found = Object(class_of[a["category_id"]], is_crowd(a["iscrowd"]), a["segmentation"])
            objects[a["image_id"]].append(found)
        images = sorted(
            (_annotated(image, objects.pop(image["id"], [])) for image in held["images"]),
            key=lambda image: image.file_name,
        )
        if twice := [a.file_name for a, b in itertools.pairwise(images) if a[0] == b[0]]:
            raise UserError(f"{twice[0]} stands in it twice")
        if objects:
            raise UserError(
                f"it has objects of image {short(next(iter(objects)))}, but no such image"
            )
        return images
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {cut(str(error))}"
        raise UserError(
            f"{path} is damaged or not a COCO annotation file ({reason}); delete it and unpack it "
            "again"
        ) from error


def _annotated(image: dict[str, Any], objects: list[Object]) -> Annotated:
    name, height, width = (image[x] for x in ("file_name", "height", "width"))
    name = pathlib.PurePath(name).name
    if not re.fullmatch(r"\S+\.jpg", name):  # lists of ids are split at blanks
        raise UserError(f"it has an image of the name {short(name)}")
    are_sides = {type(height), type(width)} == {int} and min(height, width) > 0
    if not are_sides or height * width > MOST_PIXELS:
        raise UserError(f"{name} has the height {short(height)} and the width {short(width)}")
    return Annotated(name, height, width, objects)


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
