"""Makes masks from a CSV file, a COCO JSON file or labelme files, and checks a user's folder.

For every source, it writes the masks and `classes.txt` that `data.datasets.folder_files` describes.

* A CSV file with the columns `image` (relative to `images`) and `mask` (relative to the CSV), and
  optionally `class`, if each mask shows one class in all pixels that are not 0. Without that
  column, masks contain class numbers.
* A COCO JSON file with polygons or run lengths; `file_name` is a path relative to `images`, or only
  a name.
* A folder of labelme JSON files, each with the name and the subfolder of its picture.

Later objects cover earlier ones. Classes are numbered as in `classes.txt`; if there is none yet, in
the order of COCO's ids or alphabetically.
"""

import csv
import json
import math
import pathlib
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from prosam_jax import console, images
from prosam_jax.atomic import writing
from prosam_jax.config import check_choice
from prosam_jax.data.datasets.folder_check import check
from prosam_jax.data.datasets.folder_files import (
    CLASSES,
    IMAGES,
    MASKS,
    find_folder,
    pictures,
    read_classes,
    stem,
)
from prosam_jax.data.folds import named
from prosam_jax.data.prepare.coco_masks import Object, check_installed, paint
from prosam_jax.errors import UserError

# Paints the mask of a picture; raises UserError if its file or its outlines are bad.
Painter = Callable[[], UInt8[np.ndarray, "h w"]]


def prepare(
    root: pathlib.Path, source: pathlib.Path | None, *, check_only: bool, force: bool = False
) -> int:
    """Makes masks if a source is given, checks the folder and prints one line per bad file.

    Args:
        root: The user's folder.
        source: CSV file, JSON file or folder of JSON files; None if `masks` exists already.
        check_only: Whether to write nothing.
        force: Whether to overwrite existing masks that differ.

    Returns:
        Number of bad files.

    Raises:
        UserError: The folder or the source is not valid.
    """
    if source and check_only:
        raise UserError("--check only checks existing masks: leave --annotations out")
    faults = make_masks(root, source, force=force) if source else {}
    _print(faults.values())
    folder = find_folder(str(root))
    contents = check(folder, trust=not check_only, keep=not check_only)
    _print(line for name, line in contents.faults.items() if name not in faults)
    counts = {
        name: sum(c in shares for shares in contents.shares.values())
        for c, name in enumerate(folder.class_names, 1)
    }
    by_class = [f"{n} of {name}" for name, n in counts.items() if n]
    if empty := [name for name, n in counts.items() if not n]:
        by_class.append(f"none of {named(empty)}")
    good, bad = len(contents.shares), len({**faults, **contents.faults})
    print(
        f"{folder.path}: pictures: {good}, bad files: {bad}; pictures by class: "
        f"{', '.join(by_class)}"
    )
    if not bad:
        path = shlex.quote(str(folder.path))
        print(f"train with: prosam train --config folder --config.data.root={path} --workdir DIR")
    return bad


def _print(faults: Iterable[str]) -> None:
    for line in faults:  # a file's name need not be valid UTF-8
        print(line.encode(errors="backslashreplace").decode())


def make_masks(root: pathlib.Path, source: pathlib.Path, *, force: bool = False) -> dict[str, str]:
    """Writes masks and `classes.txt`; returns a line for each file for which it cannot.

    Raises:
        UserError: The source cannot be read, or a mask exists and differs and `force` is not set.
    """
    if not (root / IMAGES).is_dir():
        raise UserError(f"--root={root}: there is no {root / IMAGES}; put the pictures there")
    if not source.exists():
        raise UserError(f"--annotations={source}: there is no such file or folder")
    names = pictures(root / IMAGES)
    if source.is_dir():
        painters = _of_labelme(root, source, names)
    elif source.suffix.lower() == ".csv":
        painters = _of_table(root, source, names)
    elif source.suffix.lower() == ".json":
        painters = _of_coco(root, source, names)
    else:
        raise UserError(
            f"--annotations={source} must be a .csv, a .json or a folder of .json files"
        )
    (root / MASKS).mkdir(exist_ok=True)
    faults = {}
    for name, painter in console.track(painters.items(), len(painters), "painting masks"):
        try:
            mask = painter()
        except UserError as fault:
            faults[name] = str(fault)
            continue
        path = root / MASKS / f"{stem(name)}.png"
        if path.exists() and not force and not _holds(path, mask):
            raise UserError(f"{path} exists and differs: pass --force, or move it elsewhere")
        with writing(path) as file:
            Image.fromarray(mask).save(file, "PNG")
    return faults


def _holds(path: pathlib.Path, mask: UInt8[np.ndarray, "h w"]) -> bool:
    try:
        return np.array_equal(images.read_labels(path), mask)
    except UserError:  # an incomplete file is not this mask
        return False


def _of_table(root: pathlib.Path, source: pathlib.Path, names: list[str]) -> dict[str, Painter]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            rows, columns = list(table), table.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source} cannot be read ({error}); save it as CSV in UTF-8") from error
    if lacking := [name for name in ("image", "mask") if name not in columns]:
        raise UserError(
            f"{source} has the columns {', '.join(columns) or 'none'} and lacks {lacking[0]}; its "
            "first line must be image,mask or image,mask,class"
        )
    by_class = "class" in columns
    if by_class:
        classes = _numbered(root, sorted({row["class"] or "" for row in rows}), source)
    else:
        classes = {name: c for c, name in enumerate(read_classes(root / CLASSES), 1)}
    parts: dict[str, list[tuple[pathlib.Path, int]]] = defaultdict(list)
    find = _Finder(names, source)
    for at, row in enumerate(rows, 2):
        path = source.parent / (row["mask"] or "")
        if path.resolve().is_relative_to((root / MASKS).resolve()):
            raise UserError(f"{source}, line {at}: {path} would be overwritten; move it elsewhere")
        parts[find(row["image"] or "")].append(
            (path, classes[row["class"] or ""] if by_class else 0)
        )
    return {name: lambda found=found: _joined(found) for name, found in parts.items()} | find.lost


def _joined(parts: Sequence[tuple[pathlib.Path, int]]) -> UInt8[np.ndarray, "h w"]:
    labels = None
    for path, class_id in parts:
        mask = images.read_mask(path, turn=False) if class_id else images.read_labels(path)
        labels = np.zeros(mask.shape, np.uint8) if labels is None else labels
        if mask.shape != labels.shape:
            raise UserError(f"{path} must have the size of the picture's first mask {parts[0][0]}")
        labels = np.where(mask > 0, class_id or mask, labels).astype(np.uint8)
    assert labels is not None
    return labels


def _of_coco(root: pathlib.Path, source: pathlib.Path, names: list[str]) -> dict[str, Painter]:
    check_installed()
    try:
        held = json.loads(source.read_bytes())
        categories = {c["id"]: c["name"] for c in sorted(held["categories"], key=lambda c: c["id"])}
        entries = {entry["id"]: entry for entry in held["images"]}
        sizes = {i: (int(entry["height"]), int(entry["width"])) for i, entry in entries.items()}
        file_names = {i: entry["file_name"] for i, entry in entries.items()}
        objects: dict[Any, list[Any]] = defaultdict(list)
        for a in held["annotations"]:
            crowd, category = bool(a.get("iscrowd", 0)), categories[a["category_id"]]
            objects[a["image_id"]].append((category, crowd, a.get("segmentation")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source} is damaged or not a COCO JSON file ({type(error).__name__}: {error})"
        ) from error
    classes = _numbered(root, list(categories.values()), source)
    find = _Finder(names, source)
    painters: dict[str, Painter] = {}
    for i, (height, width) in sizes.items():
        found = [Object(classes[name], crowd, shape) for name, crowd, shape in objects[i]]
        name = find(file_names[i])
        painters[name] = lambda f=found, n=name, h=height, w=width: _painted(source, n, f, h, w)
    return painters | find.lost


def _painted(
    source: pathlib.Path, name: str, objects: Sequence[Object], height: int, width: int
) -> UInt8[np.ndarray, "h w"]:
    if not all(item.segmentation for item in objects):
        raise UserError(
            f"{source} has an object without an outline on {name}; add it, boxes are not enough"
        )
    try:
        return paint(objects, height, width)
    except Exception as error:  # pycocotools raises all kinds on broken outlines
        raise UserError(f"{source} has a broken outline on {name}: {error}") from error


def _of_labelme(root: pathlib.Path, source: pathlib.Path, names: list[str]) -> dict[str, Painter]:
    by_stem = {stem(name): name for name in names}
    shapes: dict[str, Any] = {}
    painters: dict[str, Painter] = {}
    for path in sorted(source.rglob("*.json")):
        name = by_stem.get(stem(path.relative_to(source).as_posix()))
        if name is None:
            line = f"{path} has no picture of the same name in {root / IMAGES}"
            painters[str(path)] = _failing(line)
            continue
        try:
            held = json.loads(path.read_bytes())
            shapes[name] = (
                path,
                [
                    (
                        str(s["label"]),
                        str(s.get("shape_type") or "polygon"),
                        np.array(s["points"], float),
                    )
                    for s in held["shapes"]
                ],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            line = f"{path} is damaged or not a labelme file ({type(error).__name__}: {error})"
            painters[name] = _failing(line)
    labels = sorted({label for _, found in shapes.values() for label, _, _ in found})
    classes = _numbered(root, labels, source)
    for name, (path, found) in shapes.items():
        painters[name] = lambda n=name, p=path, f=found: _drawn(root / IMAGES / n, p, f, classes)
    return painters


def _drawn(
    image: pathlib.Path, path: pathlib.Path, shapes: Iterable[Any], classes: dict[str, int]
) -> UInt8[np.ndarray, "h w"]:
    canvas = Image.new("L", images.size(image))
    pen = ImageDraw.Draw(canvas)
    for label, kind, points in shapes:
        fewest = {"polygon": 3, "rectangle": 2, "circle": 2}.get(kind)
        if fewest is None:
            raise UserError(f"{path} contains a {kind}; use polygons, rectangles and circles only")
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < fewest:
            raise UserError(f"{path} contains a {kind} of {len(points)} points; it needs {fewest}")
        if kind == "polygon":
            pen.polygon([tuple(p) for p in points.tolist()], fill=classes[label])
        elif kind == "rectangle":
            corners = *points[:2].min(0).tolist(), *points[:2].max(0).tolist()
            pen.rectangle(corners, fill=classes[label])
        else:
            pen.circle(points[0].tolist(), math.dist(*points[:2]), fill=classes[label])
    return np.array(canvas)


def _numbered(root: pathlib.Path, names: Sequence[str], source: pathlib.Path) -> dict[str, int]:
    """Class numbers by name, from `classes.txt`; it is written in the given order if missing."""
    path = root / CLASSES
    if not all(name.strip() for name in names):
        raise UserError(f"{source} has an object without a class name; name its class")
    if not names:
        return {}
    if not path.exists():
        with writing(path) as file:
            file.write("".join(f"{name.strip()}\n" for name in names).encode())
    known = read_classes(path)
    for name in names:
        check_choice(f"{source}: class", name.strip(), known)
    return {name: known.index(name.strip()) + 1 for name in names}


class _Finder:
    """Finds pictures by their names in a source; `lost` collects those that do not exist."""

    def __init__(self, names: Sequence[str], source: pathlib.Path):
        self._source = source
        self._by_path = {name: name for name in names}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_name[name.rpartition("/")[2]].append(name)
        self.lost: dict[str, Painter] = {}

    def __call__(self, name: str) -> str:
        path = name.strip().replace("\\", "/").removeprefix("./").removeprefix(f"{IMAGES}/")
        alike = self._by_name[path.rpartition("/")[2]]
        if found := self._by_path.get(path) or (alike[0] if len(alike) == 1 else ""):
            return found
        several = f", and {len(alike)} of this name in other folders" if alike else ""
        line = f"{self._source} names the picture {name!r}, which is not in {IMAGES}{several}"
        self.lost[path] = _failing(line)
        return path


def _failing(line: str) -> Painter:
    def painter() -> UInt8[np.ndarray, "h w"]:
        raise UserError(line)

    return painter
