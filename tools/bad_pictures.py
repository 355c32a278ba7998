"""Odd and bad files in a user's folder, tried one by one, as tables in Markdown.

python -m tools.bad_pictures
"""

import contextlib
import io
import json
import math
import os
import pathlib
import struct
import tempfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from prosam_jax import cli

WIDTH, HEIGHT = 40, 30
WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


class Case(NamedTuple):
    """A folder that is odd in one way.

    Attributes:
        what: What is odd.
        change: Changes a good folder of one picture, `images/a.png` and `masks/a.png`.
        flags: Further flags of `prosam prepare folder`; "{root}" stands for the folder.
    """

    what: str
    change: Callable[[pathlib.Path], object]
    flags: tuple[str, ...] = ("--check",)


def labels() -> np.ndarray:
    """The good mask: class 1 on the left."""
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[:, : WIDTH // 2] = 1
    return numbers


def write_folder(root: pathlib.Path) -> None:
    """A good folder of one picture and two classes."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    Image.fromarray(WHITE).save(root / "images/a.png")
    Image.fromarray(labels()).save(root / "masks/a.png")


def _picture(image: Image.Image, name: str = "a.png", mask: np.ndarray | None = None, **options):
    """Replaces the picture, and the mask by one of the picture's size."""

    def change(root: pathlib.Path) -> None:
        _bare(root)
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        numbers = np.ones((image.height, image.width), np.uint8) if mask is None else mask
        mask_path = (root / "masks" / name).with_suffix(".png")
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers).save(mask_path)

    return change


def _bare(root: pathlib.Path) -> None:
    (root / "images/a.png").unlink()
    (root / "masks/a.png").unlink()


def _mask(image: Image.Image | np.ndarray, name: str = "a.png", **options):
    """Replaces the mask."""

    def change(root: pathlib.Path) -> None:
        (root / "masks/a.png").unlink()
        whole = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        whole.save(root / "masks" / name, **options)

    return change


def _bytes(name: str, content: Callable[[bytes], bytes]):
    """Changes the content of a file."""

    def change(root: pathlib.Path) -> None:
        path = root / name
        path.write_bytes(content(path.read_bytes() if path.exists() else b""))

    return change


def _renamed(name: str, content: bytes):
    """Replaces the picture by another file."""

    def change(root: pathlib.Path) -> None:
        (root / "images/a.png").unlink()
        (root / "images" / name).write_bytes(content)

    return change


def _jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(WHITE).save(file, "JPEG", **options)
    return file.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn
    return exif


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    at = content.index(b"IDAT") + 8
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def _huge(content: bytes) -> bytes:
    """A PNG whose header says that it has 20,000 x 10,000 pixels."""
    head = content[12:16] + struct.pack(">II", 20000, 10000) + content[24:29]
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


def _hidden(root: pathlib.Path) -> None:
    for place in (root / "images", root / "masks"):
        (place / "._a.png").write_bytes(b"\0\5\26\7")
        (place / ".ipynb_checkpoints").mkdir()
        Image.fromarray(WHITE).save(place / ".ipynb_checkpoints/a-checkpoint.png")


def _palette() -> Image.Image:
    image = Image.fromarray(WHITE).quantize(4)
    image.info["transparency"] = b"\x00\x80"
    return image


def _linked(root: pathlib.Path) -> None:
    (root / "images/a.png").unlink()
    (root / "images/a.png").symlink_to(root / "nowhere.png")


_DEEP = np.full((HEIGHT, WIDTH), 65535, np.uint16)

ODD = (
    Case("JPEG in CMYK", _picture(Image.fromarray(WHITE).convert("CMYK"), "a.jpg")),
    Case("16 bits, grey, PNG", _picture(Image.fromarray(_DEEP))),
    Case("16 bits, grey, TIFF", _picture(Image.fromarray(_DEEP), "a.tif")),
    Case("palette", _picture(Image.fromarray(WHITE).quantize(4))),
    Case("palette with transparency", _picture(_palette(), transparency=b"\x00\x80")),
    Case("transparency", _picture(Image.fromarray(WHITE).convert("RGBA"))),
    Case("grey with transparency", _picture(Image.fromarray(WHITE).convert("LA"))),
    Case("1 bit", _picture(Image.fromarray(WHITE).convert("1"))),
    Case("animation", _picture(Image.fromarray(WHITE), "a.gif", save_all=True,
                               append_images=[Image.new("RGB", (WIDTH, HEIGHT))])),
    Case("turned by EXIF, mask as shown",
         _picture(Image.fromarray(WHITE), "a.jpg", labels().T.copy(), exif=_turned())),
    Case("turned by EXIF, mask as stored",
         _picture(Image.fromarray(WHITE), "a.jpg", labels(), exif=_turned())),
    Case("1 x 1 pixels", _picture(Image.new("RGB", (1, 1)))),
    Case("20,000 pixels wide", _picture(Image.new("RGB", (20000, 40)), "a.jpg")),
    Case("spaces, accents, signs in the path", _picture(Image.fromarray(WHITE), "ä b/日本 🐈.JPG")),
    Case("PNG called .jpg", _picture(Image.fromarray(WHITE), "a.jpg", format="PNG")),
    Case("mask of 1 bit", _mask(Image.fromarray(labels() * 255).convert("1"))),
    Case("mask of 16 bits", _mask(labels().astype(np.uint16))),
    Case("mask without an object", _mask(np.zeros((HEIGHT, WIDTH), np.uint8))),
    Case("hidden files and folders beside it", _hidden),
    Case("suffix .jfif", _picture(Image.fromarray(WHITE), "a.jfif", format="JPEG")),
    Case("a class that no picture shows", _bytes("classes.txt", lambda content: content + b"owl")),
)  # fmt: skip
"""Files that are accepted."""

BAD = (
    Case("empty file", _bytes("images/a.png", lambda _: b"")),
    Case("a web page", _bytes("images/a.png", lambda _: b"<html>not found</html>")),
    Case("PNG cut short", _bytes("images/a.png", _cut)),
    Case("JPEG cut short", _bytes("images/a.png", lambda _: _cut(_jpeg(quality=95)))),
    Case("PNG with a flipped byte", _bytes("images/a.png", _flipped)),
    Case("fractions, TIFF", _picture(Image.fromarray(np.ones((9, 9), np.float32)), "a.tif")),
    Case("32 bits, TIFF", _picture(Image.fromarray(np.full((9, 9), 70000, np.int32)), "a.tif")),
    Case("12 of 16 bits", _picture(Image.fromarray(_DEEP >> 4))),
    Case("HEIC of a phone", _renamed("a.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")),
    Case("raw file of a camera", _renamed("a.CR2", b"II*\0\x10\0\0\0CR\2\0")),
    Case("200 million pixels", _bytes("images/a.png", _huge)),
    Case("a link to nothing", _linked),
    Case("picture without mask", lambda root: (root / "masks/a.png").unlink()),
    Case("mask without picture", lambda root: Image.new("L", (2, 2)).save(root / "masks/b.png")),
    Case("two pictures of one name",
         lambda root: Image.fromarray(WHITE).save(root / "images/a.jpg")),
    Case("two masks of one picture",
         lambda root: Image.fromarray(labels()).save(root / "masks/a.bmp")),
    Case("mask of another size", _mask(np.zeros((HEIGHT, WIDTH + 1), np.uint8))),
    Case("mask in colours", _mask(WHITE)),
    Case("mask as JPEG", _mask(labels() * 2, "a.jpg", quality=40)),
    Case("mask of 0 and 255", _mask(labels() * 255)),
    Case("mask with an unknown class", _mask(labels() * 3)),
    Case("mask of 16 bits, too large", _mask(labels().astype(np.uint16) * 300)),
    Case("mask cut short", _bytes("masks/a.png", _cut)),
    Case("name that is not UTF-8",
         lambda root: (root / "images/a.png").rename(root / "images" / os.fsdecode(b"\xff.png"))),
    Case("no pictures", lambda root: (root / "images/a.png").unlink()),
    Case("no folder of pictures", lambda root: (root / "images").rename(root / "pictures")),
    Case("no masks", lambda root: (root / "masks").rename(root / "labels")),
    Case("no classes", lambda root: (root / "classes.txt").unlink()),
    Case("no class", _bytes("classes.txt", lambda _: b"\n")),
    Case("a class twice", _bytes("classes.txt", lambda content: content + b"cat\n")),
    Case("classes in Latin-1", _bytes("classes.txt", lambda _: b"b\xe4r\n")),
    Case("damaged checked.json", _bytes("checked.json", lambda _: b"{"), ()),
)  # fmt: skip
"""Files that are refused."""


def _source(name: str, content: object):
    """Writes a table, or JSON, to a folder that has no masks."""

    def change(root: pathlib.Path) -> None:
        (root / "masks").rename(root / "parts")
        (root / "classes.txt").unlink()
        path = root / name
        path.parent.mkdir(exist_ok=True)
        held = content if isinstance(content, bytes | str) else json.dumps(content)
        path.write_bytes(held if isinstance(held, bytes) else held.encode())

    return change


def _table(content: str | bytes) -> tuple:
    return _source("t.csv", content), ("--annotations", "{root}/t.csv")


def _coco(content: object) -> tuple:
    return _source("t.json", content), ("--annotations", "{root}/t.json")


def _labelme(shape: object, name: str = "a") -> tuple:
    held = shape if isinstance(shape, str) else {"shapes": [shape]}
    return _source(f"json/{name}.json", held), ("--annotations", "{root}/json")


def _yolo(line: str) -> tuple:
    change, flags = _source("data.yaml", "names: [cat, dog]"), ("--annotations", "{root}/data.yaml")

    def both(root: pathlib.Path) -> None:
        change(root)
        (root / "labels").mkdir()
        (root / "labels/a.txt").write_text(line)

    return both, flags


def _cvat(shapes: str) -> tuple:
    image = f"<image id='0' name='a.png' width='{WIDTH}' height='{HEIGHT}'>{shapes}</image>"
    content = f"<annotations>{image}</annotations>"
    return _source("t.xml", content), ("--annotations", "{root}/t.xml")


def _label_studio(annotations: list) -> tuple:
    return _coco([{"id": 3, "data": {"image": "a.png"}, "annotations": annotations}])


def coco(**changes) -> dict:
    """A valid COCO file for the good folder."""
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]}
        ],
    } | changes


def _annotated(**changes) -> dict:
    """That file with another annotation, of id 5."""
    return coco(annotations=[coco()["annotations"][0] | {"id": 5} | changes])


def shape(**changes) -> dict:
    """A valid labelme shape."""
    good = {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [9, 0], [9, 9]]}
    return good | changes


SOURCES = (
    Case("no such file", lambda root: None, ("--annotations", "{root}/t.csv")),
    Case("table without the column", *_table("picture,mask\na.png,parts/a.png\n")),
    Case("table in Latin-1", *_table(b"image,mask,class\na.png,parts/a.png,b\xe4r\n")),
    Case("table: no such picture", *_table("image,mask,class\nb.png,parts/a.png,cat\n")),
    Case("table: no such mask", *_table("image,mask,class\na.png,parts/b.png,cat\n")),
    Case("table: masks that would be overwritten",
         *_table("image,mask,class\na.png,masks/a.png,cat\n")),
    Case("table: no class", *_table("image,mask,class\na.png,parts/a.png,\n")),
    Case("COCO's JSON cut short", *_coco('{"images": [')),
    Case("COCO's JSON without categories", *_coco({"images": [], "annotations": []})),
    Case("COCO's JSON: boxes alone",
         *_coco(coco(annotations=[{"image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5]}]))),
    Case("COCO's JSON: no such picture",
         *_coco(coco(images=[{"id": 7, "file_name": "b.png", "width": 4, "height": 3}]))),
    Case("COCO's JSON: another size",
         *_coco(coco(images=[{"id": 7, "file_name": "a.png", "width": 4, "height": 3}]))),
    Case("COCO's JSON: one id, two files",
         *_coco(coco(images=[coco()["images"][0], coco()["images"][0] | {"file_name": "b.png"}]))),
    Case("COCO's JSON: no such image", *_coco(_annotated(image_id=9))),
    Case("COCO's JSON: no such category", *_coco(_annotated(category_id=9))),
    Case("COCO's JSON: iscrowd is a word", *_coco(_annotated(iscrowd="no"))),
    Case("COCO's JSON: an odd count", *_coco(_annotated(segmentation=[[0, 0, 9, 0, 9, 9, 9]]))),
    Case("COCO's JSON: a corner is NaN",
         *_coco(_annotated(segmentation=[[0, math.nan, 9, 0, 9, 9]]))),
    Case("COCO's JSON: outside of the picture",
         *_coco(_annotated(segmentation=[[0, 0, 90, 0, 90, 90]]))),
    Case("COCO's JSON: fractions", *_coco(_annotated(segmentation=[[0, 0, 0.5, 0, 0.5, 0.5]]))),
    Case("COCO's JSON: nothing inside", *_coco(_annotated(segmentation=[[5, 5, 9, 9, 5, 5]]))),
    Case("COCO's JSON: run lengths do not add up",
         *_coco(_annotated(segmentation={"size": [HEIGHT, WIDTH], "counts": [100, 20]}))),
    Case("labelme cut short", *_labelme('{"shapes": [')),
    Case("labelme: a line", *_labelme(shape(shape_type="line"))),
    Case("labelme: two corners", *_labelme(shape(points=[[0, 0], [9, 9]]))),
    Case("labelme: no such picture", *_labelme(shape(), "b")),
    Case("labelme: a picture shrunk later",
         *_labelme(json.dumps({"shapes": [shape()], "imageWidth": 80, "imageHeight": 60}))),
    Case("YOLO: a box", *_yolo("0 0.5 0.5 0.1 0.1")),
    Case("YOLO: pixels", *_yolo("0 1 1 9 1 9 9")),
    Case("CVAT: a box", *_cvat("<box label='cat' xtl='1' ytl='1' xbr='9' ybr='9'/>")),
    Case("Label Studio: two annotators", *_label_studio([{"result": []}] * 2)),
    Case("Label Studio: two uploads of one name",
         *_coco([{"id": i, "data": {"image": f"/data/upload/1/{i}b2c3d4e-a.png"},
                  "annotations": [{"result": []}]} for i in (3, 4)])),
)  # fmt: skip
"""Tables and JSON files from which no mask can be made."""


def says(case: Case) -> str:
    """What the command prints for a case; "DIR" stands for the folder."""
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place) / "my data"
        write_folder(root)
        case.change(root)
        flags = [flag.replace("{root}", str(root)) for flag in case.flags]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            cli.main(["prepare", "folder", "--root", str(root), *flags])
        return out.getvalue().replace(str(root), "DIR").strip()


def main() -> None:
    """Prints the tables."""
    print("| file | what the command says |\n|---|---|")
    for case in ODD:
        print(f"| {case.what} | {says(case).splitlines()[0]} |", flush=True)
    print("\n| bad | message |\n|---|---|")
    for case in (*BAD, *SOURCES):
        print(f"| {case.what} | {says(case).splitlines()[0]} |", flush=True)


if __name__ == "__main__":
    main()
