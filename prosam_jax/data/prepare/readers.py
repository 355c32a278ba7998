"""Reads the files of annotation tools: COCO, labelme, YOLO, CVAT and Label Studio.

Each gives a `Found`. Nothing in a file is trusted: ids and names are compared as they are meant,
what fits nothing is named, and a later entry never replaces an earlier one. What is wrong with one
picture is a fault of that picture; what makes the whole file doubtful raises a `UserError`.
"""

import dataclasses
import json
import math
import pathlib
import re
import unicodedata
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prosam_jax import picture_files
from prosam_jax.data.folds import named
from prosam_jax.data.prepare import objects
from prosam_jax.data.prepare.objects import Object, Shape, plain, shown
from prosam_jax.errors import UserError

# YOLO's data.yaml: bytes and levels; the names of 1,203 classes take 30,000 bytes.
_MOST_YAML, _MOST_DEEP = 200_000, 20


@dataclasses.dataclass
class Annotated:
    """A picture of an annotation file.

    Attributes:
        name: The picture as the file names it, or its path below `images` without the suffix.
        by_stem: Whether `name` has no suffix.
        entry: What the file calls it, such as "image 7", for messages.
        size: (width, height) that the file says; None if it does not.
        objects: Its objects.
        said: The picture's name inside of a file that is found by its own name; "" for none.
        fault: The first thing that is wrong with it, a line; "" if nothing is.
    """

    name: str
    by_stem: bool = False
    entry: str = ""
    size: tuple[int, int] | None = None
    objects: list[Object] = dataclasses.field(default_factory=list)
    said: str = ""
    fault: str = ""

    def add(self, where: str, read: Callable[[], Object | None]) -> None:
        """Adds an object; what is wrong with it becomes the picture's fault."""
        try:
            if found := read():
                self.objects.append(found)
        except UserError as reason:
            self.fault = self.fault or f"{where} {reason}"


@dataclasses.dataclass
class Found:
    """What annotation files hold.

    Attributes:
        classes: Names of the classes in the order of their numbers, each once.
        pictures: The pictures.
        faults: A line for each annotation that belongs to no picture.
        notes: Lines on what was done and may not be meant.
        without: What a picture without objects need not have, for a note; "" if all pictures with
            masks must be here.
    """

    classes: list[str]
    pictures: list[Annotated]
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    without: str = ""


def read(source: pathlib.Path, root: pathlib.Path, *, crowds_as_objects: bool = False) -> Found:
    """Reads annotation files.

    Args:
        source: A file of COCO or Label Studio (`.json`), CVAT (`.xml`) or YOLO (`.yaml`), or a
            folder of labelme's.
        root: The user's folder.
        crowds_as_objects: Whether COCO's `iscrowd` is not looked at.

    Raises:
        UserError: The file is damaged, none of these, or contradicts itself.
    """
    kind = "folder" if source.is_dir() else source.suffix.lower()
    if kind == "folder":
        found = _labelme(source)
    elif kind == ".json":
        held = _json(source)
        if isinstance(held, list):
            found = _label_studio(source, held)
        else:
            found = _coco(source, held, crowds_as_objects=crowds_as_objects)
    elif kind == ".xml":
        found = _cvat(source)
    elif kind in (".yaml", ".yml"):
        found = _yolo(source, root)
    elif kind == ".zip":
        raise UserError(
            f"--annotations={source} is packed: unpack it, and pass what lies in it: a .json, an "
            ".xml, a data.yaml or a folder of labelme's .json files"
        )
    else:
        raise UserError(
            f"--annotations={source} must be a .csv, a .json (COCO, Label Studio), an .xml (CVAT), "
            "a .yaml (YOLO) or a folder of labelme's .json files"
        )
    if not found.pictures:
        raise UserError(f"{source} lists no pictures; export it again")
    return found


def class_name(given: Any) -> str:
    """The name of a class without blanks at its ends, in one line and in composed form.

    Raises:
        UserError: It is not a name.
    """
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise UserError(f"has the class {shown(given)}; it must be a name")
    try:
        # The mark at the beginning of some UTF-8 files, which `classes.txt` would lose.
        text = " ".join(picture_files.nfc(str(given)).replace("\ufeff", "").split())
        text.encode()
    except ValueError:  # half of a surrogate pair, or too many digits
        raise UserError(f"has the class {shown(given)}, which is no text") from None
    if not text:
        raise UserError("has no class name; name its class")
    if not all(unicodedata.category(letter) != "Cc" for letter in text):
        raise UserError(f"has the class {shown(given)}, with a control character; rename it")
    return text


def _coco(source: pathlib.Path, held: Any, *, crowds_as_objects: bool) -> Found:
    lists = {}
    for field in ("images", "categories", "annotations"):
        lists[field] = held.get(field) if isinstance(held, dict) else None
        if not isinstance(lists[field], list) or not all(isinstance(x, dict) for x in lists[field]):
            what = "damaged or not a COCO JSON file"
            if isinstance(held, dict) and "shapes" in held:
                what = "a file of labelme: pass its folder, not the file"
            raise UserError(f"{source} is {what} (it has no list of {field})")
    notes: list[str] = []
    name_of = _categories(source, lists["categories"], notes)
    pictures = _images(source, lists["images"], notes)
    used, lost = set(), []
    for i, a in _each_once(source, lists["annotations"], notes):
        about = f"annotation {shown(a['id'])}" if "id" in a else f"annotations[{i}]"
        picture = pictures.get(_key(a.get("image_id")))
        if picture is None:
            lost.append(f"{about} is of image {shown(a.get('image_id'))}")
            continue
        category = _key(a.get("category_id"))
        used.add(category)

        where = f"{source}: {about} on {plain(picture.name)}"

        def one(a: dict[str, Any] = a, category: str = category, where: str = where) -> Object:
            if category not in name_of:
                raise UserError(
                    f"has the category {shown(a.get('category_id'))}, which the file does not list"
                )
            crowd = objects.is_crowd(a.get("iscrowd", 0)) and not crowds_as_objects
            shape = objects.outline(a.get("segmentation"))
            return Object(name_of[category], where, shape, crowd)

        picture.add(where, one)
    faults = []
    if lost:
        more = f" ({len(lost)} such annotations)" if len(lost) > 1 else ""
        faults.append(f"{source}: {lost[0]}, which the file does not list{more}; export it again")
    parents = {str(c.get("supercategory")).strip() for c in lists["categories"]}
    # Roboflow lists the name of the project as a category, above all others.
    names = [n for key, n in name_of.items() if key in used or n not in parents]
    return Found(
        list(dict.fromkeys(names)),
        list({id(x): x for x in pictures.values()}.values()),
        faults,
        notes,
    )


def _each_once(
    source: pathlib.Path, listed: Sequence[dict[str, Any]], notes: list[str]
) -> list[tuple[int, dict[str, Any]]]:
    """The annotations and their places, without copies; others of one id stay."""
    of_id: dict[str, dict[str, Any]] = {}
    kept, copies, shared = [], [], []
    for i, a in enumerate(listed):
        key = _key(a.get("id"))
        first = of_id.setdefault(key, a) if key else a
        if first is not a and _equal(first, a):
            copies.append(key)
            continue
        if first is not a:
            shared.append(key)
        kept.append((i, a))
    if copies:
        notes.append(f"{source}: copies of annotation {named(copies)}: drawn once")
    if shared:
        notes.append(f"{source}: different annotations of one id, {named(shared)}: all drawn")
    return kept


def _equal(one: Any, other: Any) -> bool:
    try:
        return one == other
    except RecursionError:  # nested as deeply as Python reads it
        return False


def _merged(source: pathlib.Path, what: str, name_of: Mapping[Any, str]) -> list[str]:
    """A line for each name that stands there several times."""
    ids: dict[str, list[str]] = {}
    for key, name in name_of.items():
        ids.setdefault(name, []).append(str(key))
    return [
        f"{source}: {what} {' and '.join(keys)} are both {name!r}: one class"
        for name, keys in ids.items()
        if len(keys) > 1
    ]


def _categories(
    source: pathlib.Path, listed: Sequence[dict[str, Any]], notes: list[str]
) -> dict[str, str]:
    """Names by id, in the order of the ids."""
    name_of: dict[str, str] = {}
    for category in listed:
        key = _key(category.get("id"))
        try:
            name = class_name(category.get("name"))
        except UserError as reason:
            raise UserError(f"{source}: category {shown(category.get('id'))} {reason}") from None
        if not key:
            raise UserError(f"{source}: category {name!r} has the id {shown(category.get('id'))}")
        if name_of.setdefault(key, name) != name:
            raise UserError(
                f"{source}: the categories {name_of[key]!r} and {name!r} have one id, {key}; give "
                "each its own"
            )
    notes += _merged(source, "categories", name_of)
    return dict(sorted(name_of.items(), key=lambda item: _order(item[0])))


def _images(
    source: pathlib.Path, listed: Sequence[dict[str, Any]], notes: list[str]
) -> dict[str, Annotated]:
    """Pictures by id; entries of one file are one picture."""
    pictures: dict[str, Annotated] = {}
    of_name: dict[str, tuple[str, Annotated]] = {}
    for entry in listed:
        key, name = _key(entry.get("id")), entry.get("file_name")
        if not key:
            raise UserError(f"{source}: image {shown(name)} has the id {shown(entry.get('id'))}")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{source}: image {key} has the file_name {shown(name)}")
        if key in pictures and pictures[key].name != name:
            raise UserError(
                f"{source}: the images {pictures[key].name!r} and {name!r} have one id, {key}; "
                "give each its own, and to its annotations"
            )
        picture = Annotated(name, entry=f"image {key}")
        try:
            picture.size = _size(entry.get("width"), entry.get("height"))
        except UserError as reason:
            picture.fault = f"{source}: {picture.entry}, {plain(name)}, {reason}"
        first, same = of_name.setdefault(name, (key, picture))
        pictures[key] = same
        if same is picture:
            continue
        if same.size != picture.size:
            same.fault = same.fault or (
                f"{source}: images {first} and {key} are both {plain(name)}, of "
                f"{_by(same.size)} and {_by(picture.size)} pixels; remove the wrong one"
            )
        if first != key:
            notes.append(
                f"{source}: images {first} and {key} are both {plain(name)}: drawn together"
            )
    return pictures


def _labelme(source: pathlib.Path) -> Found:
    pictures = []
    for path in _below(source, ".json"):
        picture = Annotated(_stem(path, source), True, str(path))
        pictures.append(picture)
        try:
            held = _json(path)
            shapes = held.get("shapes") if isinstance(held, dict) else None
            if not isinstance(shapes, list) or not all(isinstance(x, dict) for x in shapes):
                raise UserError("is damaged or not a labelme file (it has no list of shapes)")
            picture.size = _size(held.get("imageWidth"), held.get("imageHeight"))
            said = held.get("imagePath")
            picture.said = said if isinstance(said, str) else ""
        except UserError as reason:
            line = str(reason)
            picture.fault = line if line.startswith(str(path)) else f"{path} {line}"
            continue
        for i, shape in enumerate(shapes):
            where = f"{path}: shapes[{i}]"
            picture.add(
                where,
                lambda shape=shape, where=where: Object(
                    class_name(shape.get("label")), where, _labelme_shape(shape)
                ),
            )
    if not pictures:
        raise UserError(
            f"--annotations={source} has no .json files of labelme; for YOLO pass its data.yaml"
        )
    return Found(_alphabetical(pictures), pictures)


def _labelme_shape(shape: dict[str, Any]) -> Shape:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    flat = _flat(points)
    if kind == "polygon":
        return objects.polygons(flat, rim=True)
    if kind == "rectangle":
        # labelme has two opposite corners, others all four; checked before they are compared.
        corners = objects.disc(flat).points if len(flat) < 6 else objects.polygons(flat).parts[0]
        (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
        box = [left, top, right, top, right, bottom, left, bottom]
        if len(corners) not in (2, 4) or not {*map(tuple, corners.tolist())} <= {
            (x, y) for x in (left, right) for y in (top, bottom)
        }:
            raise UserError("has a rectangle that is not upright; draw it as a polygon")
        return objects.polygons(box, rim=True)
    if kind == "circle":
        return objects.disc(flat)
    raise UserError(f"is a {shown(kind)}; use polygons, rectangles and circles only")


def _yolo(source: pathlib.Path, root: pathlib.Path) -> Found:
    names = _yolo_names(source)
    folder = next((x / "labels" for x in (root, source.parent) if (x / "labels").is_dir()), None)
    if folder is None:
        raise UserError(f"{source}: there is no folder {root / 'labels'} with its .txt files")
    pictures = []
    for path in _below(folder, ".txt"):
        if path.name == "classes.txt":  # LabelImg writes it among the label files
            continue
        picture = Annotated(
            path.relative_to(folder).as_posix()[: -len(path.suffix)], True, str(path)
        )
        pictures.append(picture)
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            picture.fault = f"{path} is damaged or not a label file of YOLO (it is not text)"
            continue
        for i, line in enumerate(lines, 1):
            where = f"{path}, line {i}"
            if line.strip():
                picture.add(where, lambda at=where, line=line: _yolo_object(at, line, names))
    if not pictures:
        raise UserError(f"{source}: there are no .txt files in {folder}")
    ordered = {key: names[key] for key in sorted(names)}
    notes = _merged(source, "classes", ordered)
    classes = list(dict.fromkeys(ordered.values()))
    return Found(classes, pictures, notes=notes, without=f"a .txt file in {folder}")


def _yolo_object(where: str, line: str, names: dict[int, str]) -> Object:
    number, *values = line.split()
    key, flat = _whole(number), [_number(value) for value in values]
    if key not in names:
        raise UserError(f"has the class {key}, which has no name in the .yaml file")
    if len(flat) == 4:
        raise UserError("has a box and no outline; boxes are not enough: export segments")
    if not all(-0.1 <= value <= 1.1 for value in flat):
        raise UserError("has corners that are not fractions of the size, 0-1; export it again")
    return Object(names[key], where, objects.polygons(flat, unit=1))


def _check_once(node: Any) -> None:
    """Raises ValueError if a mapping of YAML names something twice; PyYAML takes the last one."""
    if node is None or not isinstance(node.value, list):
        return
    keys = [x[0].value for x in node.value if isinstance(x, tuple)]
    if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
        raise ValueError(f"it has {twice[0]} twice")
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            _check_once(part)


def _yolo_names(source: pathlib.Path) -> dict[int, str]:
    try:
        import yaml  # an optional dependency, used only here
    except ImportError:
        raise UserError("PyYAML is not installed; run: pip install 'prosam_jax[prepare]'") from None
    content = source.read_bytes()
    if len(content) > _MOST_YAML:
        raise UserError(f"{source} has {len(content):,} bytes; YOLO's data.yaml is a small file")
    try:
        depth = 0
        for event in yaml.parse(content):  # piece by piece, so that a hostile file ends early
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_DEEP or isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases, or is nested too deeply")
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        _check_once(node)
        held: Any = None if node is None else loader.construct_document(node)
    # PyYAML's constructors raise these on values that only look like a date, a number or a key.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{source} is damaged or not YOLO's data.yaml ({line})") from None
    except (RecursionError, OverflowError):
        raise UserError(f"{source} is damaged or not YOLO's data.yaml") from None
    if isinstance(held, dict) and "kpt_shape" in held:
        raise UserError(
            f"{source} has kpt_shape: labels of key points have no outlines; use segments"
        )
    names = held.get("names") if isinstance(held, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not {type(key) for key in names} <= {int}:
        raise UserError(f"{source} is damaged or not YOLO's data.yaml (it has no list of names)")
    if held.get("nc", len(names)) != len(names):
        raise UserError(f"{source} says nc: {shown(held['nc'])} and has {len(names)} names")
    found = {}
    for key, name in names.items():
        try:
            found[key] = class_name(name)
        except UserError as reason:
            raise UserError(f"{source}: class {key} {reason}") from None
    return found


class _NoDoctype(ET.TreeBuilder):
    """Refuses entities, which could make a small file huge or read others."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UserError("it has a DOCTYPE")


def _cvat(source: pathlib.Path) -> Found:
    try:
        top = ET.fromstring(source.read_bytes(), ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, UserError, ValueError, LookupError) as error:
        raise UserError(f"{source} is damaged or not an XML file of CVAT ({error})") from None
    if top.tag != "annotations":
        raise UserError(f"{source} is not an XML file of CVAT (it begins with <{top.tag}>)")
    if top.find("track") is not None:
        raise UserError(f"{source} has tracks of a video; export it as CVAT for images")
    pictures = []
    for image in top.iter("image"):
        name, key = image.get("name", ""), image.get("id", "")
        picture = Annotated(name, entry=f"image {plain(key)}")
        pictures.append(picture)
        try:
            picture.size = _size(image.get("width"), image.get("height"))
        except UserError as reason:
            picture.fault = f"{source}: {picture.entry}, {plain(name)}, {reason}"
        drawn: list[tuple[int, Object]] = []
        for i, shape in enumerate(image, 1):
            if shape.tag == "tag":  # a class of the whole picture
                continue
            where = f"{source}: {shape.tag} {i} on {plain(name)}"
            try:
                item = Object(class_name(shape.get("label")), where, _cvat_shape(shape))
                drawn.append((_whole(shape.get("z_order", "0")), item))
            except UserError as reason:
                picture.fault = picture.fault or f"{where} {reason}"
        picture.objects = [item for _, item in sorted(drawn, key=lambda pair: pair[0])]
    listed = [
        x.text or "" for x in top.findall("meta//labels/label/name") if (x.text or "").strip()
    ]
    try:
        names = [class_name(name) for name in listed]
    except UserError as reason:
        raise UserError(f"{source} {reason}") from None
    return Found(list(dict.fromkeys([*names, *_alphabetical(pictures)])), pictures)


def _cvat_shape(shape: ET.Element) -> Shape:
    if shape.tag == "polygon":
        points = [pair.split(",") for pair in shape.get("points", "").split(";")]
        if strange := next((point for point in points if len(point) != 2), None):
            raise UserError(f"has a point {shown(','.join(strange))}, which is not x,y")
        return objects.polygons([_number(x) for point in points for x in point])
    if shape.tag == "ellipse":
        x, y, across, down, turn = (
            _number(shape.get(field, "0")) for field in ("cx", "cy", "rx", "ry", "rotation")
        )
        objects.disc([x, y, across, down])
        if min(across, down) <= 0:
            raise UserError(f"has the radii {across:g} and {down:g}; they must be above 0")
        if not abs(turn) <= 360:
            raise UserError(f"has the rotation {turn}")
        angle = np.linspace(0, 2 * math.pi, 120, endpoint=False)
        u, v = across * np.cos(angle), down * np.sin(angle)
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        corners = np.stack([x + u * cos - v * sin, y + u * sin + v * cos], axis=-1)
        return objects.polygons(corners.ravel().tolist())
    if shape.tag == "mask":
        counts = [_whole(count) for count in shape.get("rle", "").split(",")]
        left, top, width, height = (
            _whole(shape.get(field, "")) for field in ("left", "top", "width", "height")
        )
        return objects.runs(counts, height, width, (top, left), by_rows=True)
    if shape.tag == "box":
        raise UserError("has no outline; add it, boxes are not enough")
    raise UserError(f"is a {shape.tag}; use polygons, ellipses and masks only")


def _label_studio(source: pathlib.Path, tasks: Sequence[Any]) -> Found:
    if not tasks or not all(
        isinstance(task, dict) and isinstance(task.get("annotations"), list) for task in tasks
    ):
        raise UserError(
            f"{source} is damaged or not a JSON file of COCO or Label Studio; of the latter, "
            "export JSON, not JSON-MIN"
        )
    pictures = []
    link_of: dict[str, str] = {}
    for i, task in enumerate(tasks):
        entry = f"task {shown(task.get('id', i))}"
        data = task.get("data")
        links = [x for x in data.values() if isinstance(x, str)] if isinstance(data, dict) else []
        link = data.get("image") if isinstance(data, dict) else None
        if not isinstance(link, str):
            link = links[0] if len(links) == 1 else ""
        picture = Annotated(_of_link(link), entry=entry)
        pictures.append(picture)
        done = [
            x for x in task["annotations"] if not (isinstance(x, dict) and x.get("was_cancelled"))
        ]
        results = [x.get("result") if isinstance(x, dict) else None for x in done]
        if len(done) > 1:
            picture.fault = f"{source}: {entry} has {len(done)} annotations; keep one of them"
        elif not done:
            picture.fault = f"{source}: {entry} has no annotation; annotate it, or leave it out"
        elif not isinstance(results[0], list):
            picture.fault = f"{source}: {entry} has no list of results; export it again"
        else:
            _label_studio_objects(f"{source}: {entry}", picture, results[0])
        place = link.partition("?")[0]  # behind it are keys, which differ each time
        if (first := link_of.setdefault(picture.name, place)) != place:
            picture.fault = (
                f"{source}: {entry} is of {plain(place)}, and another task of {plain(first)}, both "
                f"of the name {plain(picture.name)}: give each picture its own, or remove one task"
            )
    return Found(_alphabetical(pictures), pictures)


def _label_studio_objects(where: str, picture: Annotated, results: Sequence[Any]) -> None:
    for i, result in enumerate(results):
        at = f"{where}, result {i + 1} on {plain(picture.name)}"

        def one(result: Any = result, at: str = at) -> Object | None:
            if not isinstance(result, dict):
                raise UserError("is no object of JSON; export it again")
            kind, value = result.get("type"), result.get("value")
            if kind in ("relation", "choices", "textarea", "rating", "taxonomy", "number"):
                return None  # no region
            if not isinstance(value, dict):
                raise UserError("has no value; export it again")
            if kind not in ("polygonlabels", "polygon"):
                raise UserError(f"is of the type {shown(kind)}; use polygons with labels only")
            if result.get("image_rotation") not in (None, 0):
                raise UserError(
                    f"has image_rotation {shown(result['image_rotation'])}; turn the picture's "
                    "file and annotate it again"
                )
            if result.get("item_index") not in (None, 0):
                raise UserError(
                    f"has item_index {shown(result['item_index'])}, a further page; make each page "
                    "a task of its own"
                )
            size = _size(result.get("original_width"), result.get("original_height"))
            if size and picture.size not in (None, size):
                raise UserError(f"says {_by(size)} pixels and another result {_by(picture.size)}")
            picture.size = size or picture.size
            labels = value.get("polygonlabels")
            if not isinstance(labels, list) or len(labels) != 1:
                raise UserError("has no label, or several; it must have one")
            shape = objects.polygons(_flat(value.get("points")), unit=100)
            return Object(class_name(labels[0]), at, shape)

        picture.add(at, one)


def _of_link(link: str) -> str:
    """The path in a link of Label Studio: to its own upload, to a local file or to a server."""
    try:
        parts = urllib.parse.urlsplit(link)
    except ValueError:  # no address
        return link
    local = urllib.parse.parse_qs(parts.query).get("d") if parts.query else None
    path = local[0] if local else urllib.parse.unquote(parts.path)
    folder, _, name = path.rpartition("/")
    if "/data/upload/" in f"{folder}/":
        return re.sub("^[0-9a-f]{8}-", "", name)
    return path


def _json(path: pathlib.Path) -> Any:
    """The content of a JSON file; UserError if it is damaged or names a field twice."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(
            f"{path} is damaged or not a JSON file ({reason}); export it again"
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} is there twice in one object")
    return held


def _below(folder: pathlib.Path, suffix: str) -> Iterable[pathlib.Path]:
    """The files of a suffix that are not hidden, sorted."""
    for name in picture_files.listed(folder, deep=True):
        if name.lower().endswith(suffix):
            yield folder / name


def _stem(path: pathlib.Path, folder: pathlib.Path) -> str:
    return path.relative_to(folder).as_posix().removesuffix(path.suffix)


def _key(given: Any) -> str:
    """An id as text, so that 7, 7.0 and "7" are equal; "" if it is none."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        return ""
    try:
        return plain(str(given).strip())
    except ValueError:  # more digits than Python writes
        return ""


def _order(key: str) -> tuple[bool, int, str]:
    is_number = re.fullmatch(r"-?[0-9]{1,18}", key) is not None
    return not is_number, int(key) if is_number else 0, key


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    if width is None and height is None:
        return None
    found = _whole(width), _whole(height)
    if min(found) < 1:
        raise UserError(f"has the size {shown(width)} x {shown(height)}")
    return found


def _whole(given: Any) -> int:
    """A whole number, or the text of one; UserError if it is none."""
    if isinstance(given, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", given):
        return int(given)
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise UserError(f"has {shown(given)}, which is no whole number")
    return given


def _number(text: str) -> float:
    """The number of a text; Python's `float` would take "1_0" for 10, and other scripts' digits."""
    if not re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", text):
        raise UserError(f"has {shown(text)}, which is no number")
    return float(text)


def _flat(points: Any) -> list[Any]:
    """The list x, y, x, y, ... of a list of pairs."""
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 for point in points
    ):
        raise UserError("has no list of points with x and y")
    return [value for point in points for value in point]


def _alphabetical(pictures: Iterable[Annotated]) -> list[str]:
    return sorted({item.label for picture in pictures for item in picture.objects})


def _by(size: tuple[int, int] | None) -> str:
    return f"{size[0]} x {size[1]}" if size else "unknown"
