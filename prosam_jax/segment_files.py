"""Segments the pictures of a folder and writes masks, overlays and COCO run lengths."""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.progress
from jaxtyping import UInt8
from PIL import Image

from prosam_jax import console
from prosam_jax.atomic import check_file, replacing
from prosam_jax.errors import UserError
from prosam_jax.images import read
from prosam_jax.picture_files import is_picture, listed, nfc
from prosam_jax.run_lengths import run_lengths
from prosam_jax.segmenter import Segmentation, Segmenter

SHOWN = 3
TINT = (25, 130, 255)
_MOST = 120_000_000  # of 40 megapixels: the results of a batch are in memory together


@dataclasses.dataclass(frozen=True)
class Plan:
    """The files to write, checked before anything is computed.

    Attributes:
        outputs: For each target, the files to write by kind: "mask", "overlay", "uncertainty".
        json: The file for run lengths, or None.
    """

    outputs: dict[pathlib.Path, dict[str, pathlib.Path]]
    json: pathlib.Path | None


def plan(
    targets: pathlib.Path,
    out: pathlib.Path,
    *,
    overlay: bool,
    uncertainty: bool,
    as_json: bool,
    force: bool,
    inputs: Sequence[pathlib.Path] = (),
) -> Plan:
    """Names the output of every target.

    Masks go to `out`/NAME.png, overlays to `out`/overlay/NAME.png, uncertainty maps to
    `out`/uncertainty/NAME.png and all run lengths to `out`/masks.json. NAME is the target's name
    without its suffix, or with it if two targets would have the same name.

    Args:
        targets: A picture, or a folder of pictures (see `picture_files`; without subfolders).
        out: Folder for the output.
        overlay: Whether to write overlays.
        uncertainty: Whether to write uncertainty maps.
        as_json: Whether to write run lengths.
        force: Whether to overwrite existing files, except targets and `inputs`.
        inputs: Files that are read besides the targets.

    Raises:
        UserError: There is no target, an input is missing, or a file is in the way.
        OSError: A folder or a device is in the way.
    """
    for path in inputs:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: pass a folder")
    if out.is_dir() and targets.is_dir() and out.samefile(targets):
        raise UserError(f"--out={out} is the folder of the targets: pass another --out")
    files = _pictures_of(targets)
    kinds = {"mask": out}
    if overlay:
        kinds["overlay"] = out / "overlay"
    if uncertainty:
        kinds["uncertainty"] = out / "uncertainty"
    outputs = {
        file: {kind: folder / f"{name}.png" for kind, folder in kinds.items()}
        for file, name in zip(files, _names(files), strict=True)
    }
    lengths = out / "masks.json"
    if force and not as_json and lengths.exists():
        raise UserError(f"{lengths} would not match the new masks: add --json, or delete it")
    made = Plan(outputs, lengths if as_json else None)
    wanted = [path for paths in outputs.values() for path in paths.values()]
    wanted += [made.json] if made.json else []
    # A target may be a link to nothing, which is told when it is its turn.
    read = {(x.stat().st_dev, x.stat().st_ino) for x in (*files, *inputs) if x.exists()}
    there = [path for path in wanted if path.exists()]
    if clash := [x for x in there if (x.stat().st_dev, x.stat().st_ino) in read]:
        raise UserError(
            f"{_few(clash)} would be overwritten while needed as input: pass another --out"
        )
    for path in there:
        check_file(path)
    if there and not force:
        verb = "exists" if len(there) == 1 else "exist"
        raise UserError(f"{_few(there)} {verb} already: pass --force, or another --out")
    return made


def run(segmenter: Segmenter, todo: Plan, *, batch_size: int) -> dict[pathlib.Path, str]:
    """Segments the targets of a plan and writes its files.

    Targets that cannot be read are skipped. If it is interrupted, all files are complete, and the
    run lengths are those of the targets that are done.

    Returns:
        The skipped targets, each with the reason.
    """
    for folder in {path.parent for paths in todo.outputs.values() for path in paths.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    batch_size = min(batch_size, len(todo.outputs))
    bad: dict[pathlib.Path, str] = {}
    records: dict[str, Any] = coco(segmenter.classes)
    uncertainty = any("uncertainty" in paths for paths in todo.outputs.values())
    stderr = console.stderr()
    shown = rich.progress.Progress(console=stderr, transient=True, disable=not stderr.is_terminal)
    with _written_at_the_end(todo.json, records), shown as bar:
        task = bar.add_task("segmenting", total=len(todo.outputs))

        def failed(target: pathlib.Path, error: Exception) -> None:
            bad[target] = str(error)
            bar.advance(task)

        for names, images in _batches(list(todo.outputs), batch_size, failed):
            found = list(segmenter.segment(images, uncertainty=uncertainty, batch_size=batch_size))
            for name, image, one in zip(names, images, found, strict=True):
                _write(todo.outputs[name], image, one)
                if todo.json:
                    add_to_coco(records, name, one)
                bar.advance(task)
    return bad


@contextlib.contextmanager
def _written_at_the_end(path: pathlib.Path | None, records: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    finally:
        if path:
            with replacing(path) as part:
                part.write_text(json.dumps(records, indent=1) + "\n")


def coco(classes: Sequence[str]) -> dict[str, Any]:
    """An empty dataset in COCO's annotation format, for `add_to_coco`."""
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": [], "annotations": [], "categories": categories}


def add_to_coco(dataset: dict[str, Any], target: pathlib.Path, found: Segmentation) -> None:
    """Adds a target's masks, with uncompressed run lengths, which `pycocotools.coco.COCO` reads.

    An empty mask adds no annotation.
    """
    images, annotations = dataset["images"], dataset["annotations"]
    image_id = len(images) + 1
    _, height, width = found.masks.shape
    images.append({"id": image_id, "file_name": target.name, "height": height, "width": width})
    for category, mask in enumerate(found.masks, 1):
        if not mask.any():
            continue
        rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        x, y = int(cols[0]), int(rows[0])
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category,
                "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                "area": int(mask.sum()),
                "bbox": [x, y, int(cols[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "iscrowd": 0,
                "score": float(found.expected_iou[category - 1]),
            }
        )


def _names(files: Sequence[pathlib.Path]) -> list[str]:
    """Names for the outputs, unique even where case and the form of accents do not matter."""
    stems = collections.Counter(_folded(file.stem) for file in files)
    names = [file.stem if stems[_folded(file.stem)] == 1 else file.name for file in files]
    if len({_folded(name) for name in names}) < len(names):  # a.jpg, a.png and a.jpg.webp
        names = [file.name for file in files]
    return names


def _folded(name: str) -> str:
    return nfc(nfc(name).casefold())


def _pictures_of(targets: pathlib.Path) -> list[pathlib.Path]:
    if targets.is_file():
        return [targets]
    if not targets.is_dir():
        raise UserError(f"--targets={targets}: there is no such file or folder")
    names = listed(targets)
    if other := [targets / name for name in names if not is_picture(name)]:
        console.note(f"passed over, because they have no picture's suffix: {_few(other)}")
    if len(other) == len(names):
        raise UserError(f"--targets={targets}: the folder has no pictures; pass another")
    return [targets / name for name in names if is_picture(name)]


def _batches(
    targets: Sequence[pathlib.Path],
    size: int,
    failed: Callable[[pathlib.Path, Exception], None],
) -> Iterator[tuple[list[pathlib.Path], list[UInt8[np.ndarray, "_ _ 3"]]]]:
    """Targets with their pixels, `size` at a time or as many as `_MOST` values allow.

    Calls `failed` for those that cannot be read.
    """
    names, images = [], []
    for target in targets:
        try:
            image = read(target)
        except UserError as error:
            failed(target, error)
            continue
        names.append(target)
        images.append(image)
        if len(names) == size or sum(image.size for image in images) > _MOST:
            yield names, images
            names, images = [], []
    if names:
        yield names, images


def _write(
    paths: Mapping[str, pathlib.Path], image: UInt8[np.ndarray, "h w 3"], found: Segmentation
) -> None:
    mask = found.masks[0]
    _save(mask.astype(np.uint8) * 255, paths["mask"])
    if path := paths.get("overlay"):
        tint = np.array(TINT, np.uint8).reshape(1, 1, 3)
        _save(np.where(mask[..., None], image // 2 + tint // 2, image // 2), path)
    if (path := paths.get("uncertainty")) and found.uncertainty is not None:
        _save(np.round(found.uncertainty[0] * 255).astype(np.uint8), path)


def _save(pixels: UInt8[np.ndarray, "..."], path: pathlib.Path) -> None:
    with replacing(path) as part:
        Image.fromarray(pixels).save(part, "png")


def _few(paths: Sequence[pathlib.Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more
