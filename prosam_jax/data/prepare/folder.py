"""Makes masks from a CSV file or the files of annotation tools, and checks a user's folder.

It writes the masks and `classes.txt` that `data.datasets.folder_files` describes.

* A CSV file with the columns `image` (relative to `images`) and `mask` (relative to the CSV), and
  optionally `class`, if each mask shows one class in all pixels that are not 0. Without that
  column, masks contain class numbers.
* What `readers` reads: COCO, labelme, YOLO, CVAT and Label Studio.

Later objects cover earlier ones. Classes are numbered as in `classes.txt`; if there is none yet, in
the order of the file's own numbers or alphabetically. Nothing is written before all is read,
checked and painted.
"""

import csv
import functools
import io
import pathlib
import shlex
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prosam_jax import console, images, picture_files
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
from prosam_jax.data.prepare import objects, preview, readers
from prosam_jax.data.prepare.objects import FEW, Object, Painted, Polygons
from prosam_jax.data.prepare.readers import Annotated
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError, printable

# What label tools call "no object" and "do not look here", in any case.
_NOTHING = ("_background_", "__background__", "background")
_IGNORED = ("__ignore__", "_ignore_", "ignore")

# Paints the mask of a picture; raises UserError if its file or its outlines are bad.
Painter = Callable[[], Painted]


class Plan(NamedTuple):
    """What is to be written.

    Attributes:
        painters: By picture.
        classes: The lines of `classes.txt` if it is to be written.
        numbers: Numbers of the classes by name.
        faults: Lines by picture or other name.
        notes: Lines on what was done and may not be meant.
    """

    painters: dict[str, Painter]
    classes: Sequence[str]
    numbers: Mapping[str, int]
    faults: dict[str, str]
    notes: Sequence[str] = ()


def prepare(
    root: pathlib.Path,
    source: pathlib.Path | None,
    *,
    check_only: bool,
    force: bool = False,
    crowds_as_objects: bool = False,
    sheet: pathlib.Path | None = None,
) -> int:
    """Makes masks if a source is given, checks the folder and prints one line per bad file.

    Args:
        root: The user's folder.
        source: CSV file, or what `readers.read` takes; None if `masks` exists already.
        check_only: Whether to write nothing.
        force: Whether to overwrite existing masks that differ.
        crowds_as_objects: Whether COCO's crowds are objects of their class.
        sheet: Where to write a contact sheet, a PNG file; None for none.

    Returns:
        Number of bad files.

    Raises:
        UserError: The folder or the source is not valid.
    """
    if source and check_only:
        raise UserError("--check only checks existing masks: leave --annotations out")
    if sheet and sheet.suffix.lower() != ".png":
        raise UserError(f"--preview={sheet} must end in .png")
    for kept in (root / IMAGES, root / MASKS):
        if sheet and sheet.resolve().is_relative_to(kept.resolve()):
            raise UserError(f"--preview={sheet} lies in {kept}: choose another place")
    faults: dict[str, str] = {}
    if source:
        faults = make_masks(root, source, force=force, crowds_as_objects=crowds_as_objects)
    folder = find_folder(str(root))
    contents = check(folder, trust=not check_only, keep=not check_only)
    _print(line for name, line in contents.faults.items() if name not in faults)
    counts = {
        name: sum(c in shares for shares in contents.shares.values())
        for c, name in enumerate(folder.class_names, 1)
    }
    by_class = [f"{n} of {name}" for name, n in counts.items() if n]
    if empty := [name for name, n in counts.items() if not n]:
        by_class.append(
            f"none of {named(empty)} (if they are mistakes, mend {folder.path / CLASSES})"
        )
    good, bad = len(contents.shares), len({**faults, **contents.faults})
    print(
        f"{folder.path}: pictures: {good}, bad files: {bad}; pictures by class: "
        f"{', '.join(by_class)}"
    )
    if sheet and good:
        print(preview.write(sheet, folder, list(contents.shares)))
    if not bad:
        path = shlex.quote(str(folder.path))
        print(f"train with: prosam train --config folder --config.data.root={path} --workdir DIR")
    return bad


def _print(lines: Iterable[str]) -> None:
    for line in lines:  # a file's name need not be valid UTF-8
        print(printable(line))


def make_masks(
    root: pathlib.Path,
    source: pathlib.Path,
    *,
    force: bool = False,
    crowds_as_objects: bool = False,
) -> dict[str, str]:
    """Writes masks and `classes.txt`, and prints what was painted and what could not be.

    A mask of before, of a picture whose annotations are now refused, is set aside.

    Returns:
        A line for each file for which it cannot.

    Raises:
        UserError: The source cannot be read, or a mask exists and differs and `force` is not set.
    """
    if not (root / IMAGES).is_dir():
        raise UserError(f"--root={root}: there is no {root / IMAGES}; put the pictures there")
    if not source.exists():
        raise UserError(f"--annotations={source}: there is no such file or folder")
    names = pictures(root / IMAGES)
    if source.suffix.lower() == ".csv":
        plan = _of_table(root, source, names)
    else:
        found = readers.read(source, root, crowds_as_objects=crowds_as_objects)
        plan = _of_annotations(root, source, found, names)
    faults, painted, stale = dict(plan.faults), {}, []
    with tempfile.TemporaryDirectory(prefix=".masks-", dir=root) as place:
        made = pathlib.Path(place)
        for i, (name, painter) in enumerate(
            console.track(plan.painters.items(), len(plan.painters), "painting masks")
        ):
            path = root / MASKS / f"{stem(name)}.png"
            try:
                mask = painter()
            except UserError as fault:
                faults[name] = str(fault)
                stale += [path] if path.exists() else []
                continue
            if path.exists() and not force and not _holds(path, mask.labels):
                raise UserError(
                    f"{path} exists and differs: pass --force to write it and all others by the "
                    f"numbers in {root / CLASSES} if that exists, or move it elsewhere"
                )
            Image.fromarray(mask.labels).save(made / f"{i}.png")
            painted[path] = made / f"{i}.png", mask.pixels, mask.hidden
        if plan.classes:
            with writing(root / CLASSES) as file:
                file.write("".join(f"{name}\n" for name in plan.classes).encode())
        (root / MASKS).mkdir(exist_ok=True)
        for path, (part, _, _) in painted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
    for path in stale:
        path.replace(path.with_name(f"{path.name}.before"))
    notes = list(plan.notes)
    if stale:
        aside = named([path.name for path in stale])
        notes.append(f"masks of before, set aside as NAME.png.before: {aside}")
    _print((*faults.values(), *notes))
    drawn = [item for _, pixels, _ in painted.values() for item in pixels]
    _print(_summary(drawn, sum(hidden for _, _, hidden in painted.values()), plan.numbers))
    return faults


def _summary(
    drawn: Sequence[tuple[Object, int]], hidden: int, numbers: Mapping[str, int]
) -> Iterable[str]:
    """Lines by which a person sees whether the annotations were understood."""
    if not drawn:
        return
    counts = Counter(item.label for item, _ in drawn if not item.crowd)
    crowds = len(drawn) - counts.total()
    groups = {"objects": [], "background": [], "ignored": []}
    for label, n in sorted(counts.items()):
        group = {0: "background", IGNORE: "ignored"}.get(numbers[label], "objects")
        groups[group].append(f"{n:,} of {label}")
    told = [f"{group}: {', '.join(held) or 'none'}" for group, held in groups.items()]
    small, large = (choose(drawn, key=lambda one: one[1]) for choose in (min, max))
    yield (
        f"{'; '.join(told)}; crowds: {crowds:,}; smallest: {small[1]:,} pixels ({small[0].where}), "
        f"largest: {large[1]:,} ({large[0].where})"
    )
    if tiny := [item for item, n in drawn if n < FEW]:
        yield f"objects of fewer than {FEW} pixels: {len(tiny):,}, such as {tiny[0].where}"
    if hidden:
        yield f"objects that later ones cover completely: {hidden:,}"
    if crowds:
        yield (
            f"{crowds:,} annotations have iscrowd 1 and are ignored (255); if your tool writes so "
            "for every run length, read them as objects with --crowds-as-objects"
        )


def _holds(path: pathlib.Path, mask: UInt8[np.ndarray, "h w"]) -> bool:
    try:
        return np.array_equal(images.read_labels(path), mask)
    except UserError:  # an incomplete file is not this mask
        return False


def _of_table(root: pathlib.Path, source: pathlib.Path, names: list[str]) -> Plan:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        if "\0" in text:
            raise ValueError("it has zero bytes")
        table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        rows, columns = list(table), table.fieldnames or ()
    except (ValueError, csv.Error) as error:  # of what is not UTF-8, too
        raise UserError(f"{source} cannot be read ({error}); save it as CSV in UTF-8") from error
    if lacking := [name for name in ("image", "mask") if name not in columns]:
        raise UserError(
            f"{source} has the columns {', '.join(columns) or 'none'} and lacks {lacking[0]}; its "
            "first line must be image,mask or image,mask,class"
        )
    if len(set(columns)) < len(columns):
        raise UserError(f"{source} has the columns {', '.join(columns)}; one is there twice")
    if long := next((at for at, row in enumerate(rows, 2) if None in row), None):
        raise UserError(
            f"{source}, line {long}, has more values than the first line has columns; put a name "
            "with a comma in quotes"
        )
    by_class = "class" in columns
    labels = [
        _label(source, at, row["class"]) if by_class else "" for at, row in enumerate(rows, 2)
    ]
    if by_class:
        classes, lines = _numbered(root, sorted(set(labels)), source)
    else:
        if not (root / CLASSES).exists():
            raise UserError(
                f"{source} has no column class: name the classes in {root / CLASSES}, one per line"
            )
        read_classes(root / CLASSES)  # which must be valid
        classes, lines = {}, ()
    parts: dict[str, list[tuple[pathlib.Path, int | None]]] = defaultdict(list)
    find, faults = _Finder(root, names, [row["image"] or "" for row in rows]), {}
    for at, (row, label) in enumerate(zip(rows, labels, strict=True), 2):
        path = source.parent / (row["mask"] or "")
        if path.resolve().is_relative_to((root / MASKS).resolve()):
            raise UserError(f"{source}, line {at}: {path} would be overwritten; move it elsewhere")
        try:
            parts[find(row["image"] or "")].append((path, classes.get(label)))
        except UserError as reason:
            faults[row["image"] or ""] = f"{source} {reason}"
    painters = {name: functools.partial(_of_parts, found) for name, found in parts.items()}
    return Plan(painters, lines, classes, faults)


def _label(source: pathlib.Path, at: int, given: str | None) -> str:
    try:
        return readers.class_name(given or "")
    except UserError as reason:
        raise UserError(f"{source}, line {at}, {reason}") from None


def _of_parts(parts: Sequence[tuple[pathlib.Path, int | None]]) -> Painted:
    return Painted(_joined(parts))


def _joined(parts: Sequence[tuple[pathlib.Path, int | None]]) -> UInt8[np.ndarray, "h w"]:
    """One mask of several: of one object each, with its class, or of class numbers (None)."""
    labels = None
    for path, class_id in parts:
        is_object = class_id is not None
        mask = images.read_mask(path, turn=False) if is_object else images.read_labels(path)
        labels = np.zeros(mask.shape, np.uint8) if labels is None else labels
        if mask.shape != labels.shape:
            raise UserError(f"{path} must have the size of the picture's first mask {parts[0][0]}")
        labels = np.where(mask > 0, class_id if is_object else mask, labels).astype(np.uint8)
    assert labels is not None
    return labels


def _of_annotations(
    root: pathlib.Path, source: pathlib.Path, found: readers.Found, names: Sequence[str]
) -> Plan:
    faults = dict(zip(found.faults, found.faults, strict=True))
    notes = list(found.notes)
    drawn = [item for picture in found.pictures for item in picture.objects]
    if any(isinstance(item.shape, Polygons) and not item.shape.rim for item in drawn):
        objects.check_installed()
    used = {item.label for item in drawn}
    numbers, lines = _numbered(root, found.classes, source, used)
    find = _Finder(root, names, [picture.name for picture in found.pictures if not picture.by_stem])
    of_name: dict[str, list[Annotated]] = defaultdict(list)
    for picture in found.pictures:
        try:
            name = find.by_stem(picture.name) if picture.by_stem else find(picture.name)
        except UserError as reason:
            where = picture.entry if picture.by_stem else source
            faults[f"{picture.entry} {picture.name}"] = f"{where} {reason}"
        else:
            of_name[name].append(picture)
    for name, same in of_name.items():
        if len(same) > 1:
            entries = " and ".join(picture.entry for picture in same)
            notes.append(f"{source}: {entries} are both {name}: drawn together")
    painters = {
        name: functools.partial(_painted, root / IMAGES / name, source, same, numbers)
        for name, same in of_name.items()
    }
    return Plan(painters, lines, numbers, faults, notes)


def _painted(
    path: pathlib.Path, source: pathlib.Path, same: Sequence[Annotated], numbers: dict[str, int]
) -> Painted:
    """The mask of a picture, of the size in a viewer, or of the stored one if the file says that.

    The objects of a turned picture may lie in the frame of its stored pixels. A mask of that size
    fits: `images.load` then leaves the picture as it is stored.
    """
    if fault := next((picture.fault for picture in same if picture.fault), ""):
        raise UserError(fault)
    shown, stored = images.size(path), images.size(path, turn=False)
    sizes = {picture.size or shown for picture in same}
    if strange := sizes - {shown, stored}:
        (width, height), *_ = strange
        raise UserError(
            f"{same[0].entry if same[0].by_stem else source} says {width} x {height} pixels and "
            f"{path} has {shown[0]} x {shown[1]}; annotate this picture, or put back the other one"
        )
    if len(sizes) > 1:
        raise UserError(f"{source} says two sizes of {path}; remove the wrong entry")
    return objects.paint([item for picture in same for item in picture.objects], numbers, *sizes)


def _numbered(
    root: pathlib.Path,
    names: Sequence[str],
    source: pathlib.Path,
    used: Iterable[str] | None = None,
) -> tuple[dict[str, int], Sequence[str]]:
    """Numbers by name, from `classes.txt`; if it is missing, the names that it must get, too."""
    path = root / CLASSES
    known = read_classes(path) if path.exists() else ()
    conventions = {name: 0 for name in _NOTHING} | {name: IGNORE for name in _IGNORED}
    wanted = names if used is None else sorted(used)
    numbers = {
        name: conventions[name.casefold()]
        for name in {*names, *wanted}
        if name.casefold() in conventions
    }
    new = [] if known else [name for name in names if name not in numbers]
    if len(new) >= IGNORE:
        raise UserError(f"{source} has {len(new)} classes; there may be {IGNORE - 1} at most")
    try:
        listed = [readers.class_name(name) for name in known or new]
    except UserError as reason:
        raise UserError(f"{path} {reason}") from None
    if twice := [name for at, name in enumerate(listed) if name in listed[:at]]:
        raise UserError(f"{path} names {twice[0]!r} twice; remove one")
    numbers |= {name: c for c, name in enumerate(listed, 1)}
    for name in wanted:
        if name not in numbers:
            check_choice(f"{source}: class", name, known)
    return numbers, new


class _Finder:
    """Finds pictures by the names that a source has for them.

    A path is found as it is. Otherwise a picture stands in only if it is the only one of its bare
    name, on both sides, and the folders of one path are the last ones of the other: `a.jpg` and
    `train/a.jpg` may be one, `cats/a.jpg` and `dogs/a.jpg` may not.
    """

    def __init__(self, root: pathlib.Path, names: Sequence[str], asked: Iterable[str]):
        self._folder = root / IMAGES
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem = {stem(_clean(name)): name for name in names}
        for name in names:
            path = _clean(name)
            self._by_path[path].append(name)
            self._by_name[_bare(path)].append(name)
        self._asked = Counter(_bare(path) for path in {_clean(name) for name in asked})

    def by_stem(self, name: str) -> str:
        """The picture of a path without suffix; UserError as for a path."""
        if found := self._by_stem.get(_clean(name)):
            return found
        raise UserError(f"has no picture of the same name in {self._folder}")

    def __call__(self, name: str) -> str:
        """The picture; UserError, which goes on from the source's name, if there is none."""
        path = _clean(name).removeprefix("./").removeprefix(f"{IMAGES}/")
        if len(found := self._by_path.get(path, ())) == 1:
            return found[0]
        line = f"names the picture {name!r}, which is not in {IMAGES}"
        alike = self._by_name.get(_bare(path), [])
        if not alike:
            raise UserError(line)
        if len(alike) > 1:
            raise UserError(f"{line}; {len(alike)} are there in other folders: give whole paths")
        (one,) = alike
        short, long = sorted((path, _clean(one)), key=len)
        if not f"/{long}".endswith(f"/{short}"):
            raise UserError(f"{line}; {one} is in another folder")
        if self._asked[_bare(path)] > 1:
            raise UserError(f"{line}; {one} may be another one of this name: give whole paths")
        return one


def _clean(name: str) -> str:
    return picture_files.nfc(name.strip().replace("\\", "/"))


def _bare(path: str) -> str:
    return path.rpartition("/")[2]
