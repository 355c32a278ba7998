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
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from prosam_jax import atomic, console, images, picture_files
from prosam_jax.atomic import locked, writing
from prosam_jax.config.checks import nearest
from prosam_jax.data.datasets.folder_check import check
from prosam_jax.data.datasets.folder_files import (
    CLASSES,
    IMAGES,
    MASKS,
    check_labelled,
    check_numbers,
    find_folder,
    is_ignored,
    numbers_in,
    pictures,
    read_classes,
    stem,
)
from prosam_jax.data.folds import named
from prosam_jax.data.prepare import objects, preview, readers
from prosam_jax.data.prepare.objects import FEW, Object, Painted, Polygons
from prosam_jax.data.prepare.readers import Annotated
from prosam_jax.data.transforms import IGNORE
from prosam_jax.errors import UserError, printable, short

# What label tools call "no object" and "do not look here", in any case.
_NOTHING = ("_background_", "__background__", "background")
_IGNORED = ("__ignore__", "_ignore_", "ignore")

# Here masks are painted; a process that was killed leaves it behind.
_PLACE = ".masks-"

# Paints the mask of a picture; raises UserError if its file or its outlines are bad.
Painter = Callable[[], tuple[UInt8[np.ndarray, "h w"], Painted]]


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
            f"none of {named(empty)} (left out of training; annotate some, or correct the names in "
            f"{folder.path / CLASSES}, whose order must stay)"
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
        UserError: The source cannot be read or has no objects, a mask exists and differs and
            `force` is not set, or another process makes masks in the same folder.
    """
    if not (root / IMAGES).is_dir():
        raise UserError(f"--root={root}: there is no {root / IMAGES}; put the pictures there")
    if not source.exists():
        raise UserError(f"--annotations={source}: there is no such file or folder")
    told = f"{root} is being prepared by another process; wait until it has ended"
    with locked(root / ".prepare.lock", told):
        for left in root.glob(f"{_PLACE}*"):
            shutil.rmtree(left)
        return _make_masks(root, source, force=force, crowds_as_objects=crowds_as_objects)


def _make_masks(
    root: pathlib.Path, source: pathlib.Path, *, force: bool, crowds_as_objects: bool
) -> dict[str, str]:
    names = pictures(root / IMAGES)
    if source.suffix.lower() == ".csv":
        plan = _of_table(root, source, names)
    else:
        found = readers.read(source, root, crowds_as_objects=crowds_as_objects)
        plan = _of_annotations(root, source, found, names)
    faults, made, reports, ignored = dict(plan.faults), {}, {}, []
    with tempfile.TemporaryDirectory(prefix=_PLACE, dir=root) as place:
        for i, (name, painter) in enumerate(
            console.track(plan.painters.items(), len(plan.painters), "painting masks")
        ):
            path = _mask_path(root, name)
            try:
                labels, reports[name] = painter()
            except UserError as fault:
                faults[name] = str(fault)
                continue
            if is_ignored(labels):
                ignored.append(name)
                continue
            if path.exists() and not force and not _holds(path, labels):
                raise UserError(
                    f"{path} exists and differs: pass --force to write it and all others by the "
                    f"numbers in {root / CLASSES} if that exists, or move it elsewhere"
                )
            made[name] = pathlib.Path(place, f"{i}.png")
            with atomic.named(path, made[name]):
                Image.fromarray(labels).save(made[name])
        has_objects = any(
            0 < plan.numbers[item.label] < IGNORE and not item.crowd
            for report in reports.values()
            for item in report.objects
        )
        if has_objects and plan.classes:
            with writing(root / CLASSES) as file:
                file.write("".join(f"{name}\n" for name in plan.classes).encode())
        for name, part in made.items() if has_objects else ():
            path = _mask_path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
    stale = [_mask_path(root, name) for name in plan.painters if name not in made]
    # A source of which nothing can be drawn is the wrong one, and changes nothing.
    stale = [path for path in stale if has_objects and path.exists()]
    for path in stale:
        aside = path.with_name(f"{path.name}.before")
        while aside.exists():  # it may be work of another day
            aside = aside.with_name(f"{aside.name}.before")
        path.rename(aside)
    notes = list(plan.notes)
    if stale:
        names_aside = named([path.name for path in stale])
        notes.append(f"masks of before, set aside as NAME.png.before: {names_aside}")
    _print((*faults.values(), *notes, *_summary(reports, ignored, plan.numbers)))
    faults |= dict.fromkeys(ignored, "")  # the summary has one line for all
    if not has_objects:
        left = f" that can be drawn (bad files: {len(faults)})" if faults else ""
        raise UserError(
            f"{source} has no objects{left}, so nothing was written; annotate some, or export it "
            "again"
        )
    return faults


def _mask_path(root: pathlib.Path, name: str) -> pathlib.Path:
    return root / MASKS / f"{stem(name)}.png"


def _summary(
    reports: Mapping[str, Painted], ignored: Sequence[str], numbers: Mapping[str, int]
) -> Iterable[str]:
    """Lines by which a person sees whether the annotations were understood.

    Args:
        reports: By picture.
        ignored: Pictures with nothing but ignored objects.
        numbers: Class numbers by the name of the class.
    """
    drawn = [item for report in reports.values() for item in report.objects]
    counts = Counter(item.label for item in drawn if not item.crowd)
    crowds = len(drawn) - counts.total()
    groups = {"objects": [], "background": [], "ignored": []}
    for label, n in sorted(counts.items()):
        group = {0: "background", IGNORE: "ignored"}.get(numbers[label], "objects")
        groups[group].append(f"{n:,} of {label or IGNORE}")
    if drawn:
        told = [f"{group}: {', '.join(held) or 'none'}" for group, held in groups.items()]
        small, large = (choose(drawn, key=lambda item: item.pixels) for choose in (min, max))
        yield (
            f"{'; '.join(told)}; crowds: {crowds:,}; smallest: {small.pixels:,} pixels "
            f"({small.where}), largest: {large.pixels:,} ({large.where})"
        )
    if tiny := [item.where for item in drawn if item.pixels < FEW]:
        yield f"objects of fewer than {FEW} pixels: {len(tiny):,}, such as {tiny[0]}"
    if blank := [where for report in reports.values() for where in report.blank]:
        yield f"masks that show no object, all black: {len(blank):,}, such as {blank[0]}"
    if hidden := sum(report.hidden for report in reports.values()):
        yield f"objects that later ones cover completely: {hidden:,}"
    if doubtful := [name for name, report in reports.items() if report.doubtful]:
        yield (
            "pictures that EXIF data turn or flip, without a size that tells whether they were "
            f"outlined before or after that: {len(doubtful):,}, such as {doubtful[0]}; outlines "
            "are taken for those of the picture in a viewer (look at them with --preview)"
        )
    alone = ""
    if ignored:
        alone = (
            f"pictures with nothing else, which get no mask: {len(ignored):,}, such as {ignored[0]}"
        )
    if crowds:
        yield (
            f"annotations with iscrowd 1, which are ignored (255): {crowds:,}{'; ' * bool(alone)}"
            f"{alone}; if your tool writes so for every run length, read them as objects with "
            "--crowds-as-objects"
        )
    elif alone:
        yield f"ignored objects (255): {alone}; label what they show, or take them out"


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
        rows = [(table.line_num, row) for row in table]
        columns = table.fieldnames or ()
    except (ValueError, csv.Error) as error:  # of what is not UTF-8, too
        raise UserError(f"{source} cannot be read ({error}); save it as CSV in UTF-8") from error
    if lacking := [name for name in ("image", "mask") if name not in columns]:
        raise UserError(
            f"{source} has the columns {', '.join(columns) or 'none'} and lacks {lacking[0]}; its "
            "first line must be image,mask or image,mask,class"
        )
    if len(set(columns)) < len(columns):
        raise UserError(f"{source} has the columns {', '.join(columns)}; one is there twice")
    if long := next((at for at, row in rows if None in row), None):
        raise UserError(
            f"{source}, line {long}, has more values than the first line has columns; put a name "
            "with a comma in quotes"
        )
    by_class = "class" in columns
    labels = [_label(source, at, row["class"]) if by_class else "" for at, row in rows]
    if by_class:
        numbers, lines = _numbered(root, sorted(set(labels)), source)
    else:
        if not (root / CLASSES).exists():
            raise UserError(
                f"{source} has no column class: name the classes in {root / CLASSES}, one per line"
            )
        known = read_classes(root / CLASSES)  # which must be valid
        numbers, lines = {"": IGNORE} | {name: c for c, name in enumerate(known, 1)}, ()
    parts: dict[str, list[_Part]] = defaultdict(list)
    find, faults = _Finder(root, names, [row["image"] or "" for _, row in rows]), {}
    for (at, row), label in zip(rows, labels, strict=True):
        where, path = f"{source}, line {at}", source.parent / (row["mask"] or "")
        if path.resolve().is_relative_to((root / MASKS).resolve()):
            raise UserError(f"{where}: {path} would be overwritten; move it elsewhere")
        try:
            parts[find(row["image"] or "")].append(_Part(where, path, label))
        except UserError as reason:
            faults[row["image"] or ""] = f"{source} {reason}"
    painters = {
        name: functools.partial(_of_parts, root / IMAGES / name, found, numbers)
        for name, found in parts.items()
    }
    return Plan(painters, lines, numbers, faults, _alike(numbers))


def _label(source: pathlib.Path, at: int, given: str | None) -> str:
    try:
        return readers.class_name(given or "")
    except UserError as reason:
        raise UserError(f"{source}, line {at}, {reason}") from None


class _Part(NamedTuple):
    """A row of a table: its place, its mask, and the class of the mask's object; "" for numbers."""

    where: str
    mask: pathlib.Path
    label: str


def _of_parts(
    path: pathlib.Path, parts: Sequence[_Part], numbers: Mapping[str, int]
) -> tuple[UInt8[np.ndarray, "h w"], Painted]:
    """The mask of a picture from masks of one object each, or of class numbers."""
    names = {number: name for name, number in numbers.items()}
    first, size = parts[0].mask, None
    found, blank = [], []
    for where, mask, label in parts:
        if label:
            pixels = images.read_mask(mask, turn=False)
            layers = [(label, pixels)] if pixels.any() else []
            blank += [] if layers else [f"{mask} ({where})"]
        else:
            pixels = images.read_labels(mask)
            check_numbers(mask, pixels, len(numbers) - 1)
            layers = ((names[c], pixels == c) for c in numbers_in(pixels) if c)
        height, width = pixels.shape
        size = size or (width, height)
        if size != (width, height):
            raise UserError(f"{mask} must have the size of the picture's first mask {first}")
        found += [Object(name, where, objects.runs_of(inside)) for name, inside in layers]
    held = Annotated(path.name, by_stem=True, entry=str(first), size=size, objects=found)
    labels, painted = _painted(path, first, [held], numbers)
    if "" in numbers:
        check_labelled(first, labels)
    return labels, painted._replace(blank=blank)


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
    notes += [*_renamed(find, of_name), *_alike(numbers)]
    if found.without:
        there = {stem(name) for name in of_name}
        others = [name for name in names if stem(name) not in there]
        blank = [name for name in others if not _mask_path(root, name).exists()]
        of_name |= {name: [Annotated(name)] for name in blank}
        if others:
            notes.append(
                f"pictures without {found.without}, taken for pictures without objects unless they "
                f"have a mask: {len(others):,}, such as {others[0]}"
            )
    painters = {
        name: functools.partial(_painted, root / IMAGES / name, source, same, numbers)
        for name, same in of_name.items()
    }
    return Plan(painters, lines, numbers, faults, notes)


def _renamed(find: "_Finder", of_name: Mapping[str, Sequence[Annotated]]) -> list[str]:
    """A line on files that say another picture's name inside; a fault if that one exists, too.

    Files are often renamed together with their pictures, and only their own name changes then.
    """
    others = []
    for name, same in of_name.items():
        for picture in same:
            bare = _bare(_clean(picture.said))
            own = stem(_bare(_clean(name))).casefold()
            if not bare or own in (bare.casefold(), stem(bare).casefold()):
                continue
            if other := find.beside(name, bare):
                picture.fault = picture.fault or (
                    f"{picture.entry} is named after {name}, and its imagePath is another picture, "
                    f"{other}: correct the one that is wrong"
                )
            else:
                others.append(f"{picture.entry} ({bare})")
    if not others:
        return []
    return [
        "files whose imagePath names no picture beside theirs, drawn by their own name: "
        f"{len(others):,}, such as {others[0]}"
    ]


def _painted(
    path: pathlib.Path, source: pathlib.Path, same: Sequence[Annotated], numbers: Mapping[str, int]
) -> tuple[UInt8[np.ndarray, "h w"], Painted]:
    """The mask of a picture, of the size in a viewer, or of the stored one if the file says that.

    The objects of a turned picture may lie in the frame of its stored pixels. A mask of that size
    fits: `images.load` then leaves the picture as it is stored.
    """
    if fault := next((picture.fault for picture in same if picture.fault), ""):
        raise UserError(fault)
    shown, stored, turned = images.frames(path)
    sizes = {picture.size or shown for picture in same}
    if strange := sizes - {shown, stored}:
        (width, height), *_ = strange
        raise UserError(
            f"{same[0].entry if same[0].by_stem else source} is for {width} x {height} pixels and "
            f"{path} has {shown[0]} x {shown[1]}; annotate this picture, or put back the other one"
        )
    if len(sizes) > 1:
        raise UserError(f"{source} says two sizes of {path}; remove the wrong entry")
    drawn = [item for picture in same for item in picture.objects]
    labels, painted = objects.paint(drawn, numbers, *sizes)
    untold = shown == stored or any(picture.size is None for picture in same)
    return labels, painted._replace(doubtful=turned and untold and bool(drawn))


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
            near = nearest(name, known)
            raise UserError(
                f"{source} has the class {short(name)}, which is not in {path}{near}; add it "
                "there, at the end, or rename it"
            )
    return numbers, new


def _alike(names: Iterable[str]) -> list[str]:
    """A line for each class whose name differs from others only in capitals."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        same[name.casefold()].append(name)
    return [
        f"the classes {named(alike)} differ in capitals only; if they are one, rename all but one"
        for alike in same.values()
        if len(alike) > 1
    ]


class _Finder:
    """Finds pictures by the names that a source has for them.

    A path is found as it is. Otherwise a picture stands in only if it is the only one of its bare
    name, on both sides, and the folders of one path are the last ones of the other: `a.jpg` and
    `train/a.jpg` may be one, `cats/a.jpg` and `dogs/a.jpg` may not.

    A picture that would share its mask with another one that can be read is not found.
    """

    def __init__(self, root: pathlib.Path, names: Sequence[str], asked: Iterable[str]):
        self._folder = root / IMAGES
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            path = _clean(name)
            self._by_stem[stem(path)].append(name)
            self._by_path[path].append(name)
            self._by_name[_bare(path)].append(name)
        self._asked = Counter(_bare(path) for path in {_clean(name) for name in asked})

    def by_stem(self, name: str) -> str:
        """The picture of a path without suffix; UserError as for a path."""
        if found := self._by_stem.get(_clean(name)):
            # A camera's raw file may lie beside its JPEG.
            return self._alone(next(filter(picture_files.is_readable, found), found[0]))
        raise UserError(f"has no picture of the same name in {self._folder}")

    def beside(self, name: str, bare: str) -> str:
        """The picture of a bare name, whatever its suffix, in the folder of `name`; "" if none."""
        folder = _clean(name).removesuffix(_bare(_clean(name)))
        return next(iter(self._by_stem.get(stem(f"{folder}{bare}"), ())), "")

    def __call__(self, name: str) -> str:
        """The picture; UserError, which goes on from the source's name, if there is none."""
        return self._alone(self._named(name))

    def _alone(self, name: str) -> str:
        for other in self._by_stem[stem(_clean(name))]:
            if other != name and picture_files.is_readable(other):
                raise UserError(
                    f"has the picture {name!r}, and {other!r} would get the same mask: rename one "
                    "of the two"
                )
        return name

    def _named(self, name: str) -> str:
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
