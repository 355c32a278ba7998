"""Which files are pictures, which are passed over, and what is said of the unreadable ones."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import types
import unicodedata
import zlib

import numpy as np
import pytest
from conftest import assert_lines, told
from PIL import Image

from prosam_jax import images, picture_files, segment_files
from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.folder import own_episodes
from prosam_jax.data.datasets.folder_check import check
from prosam_jax.data.datasets.folder_files import find_folder
from prosam_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def chunk(kind, content):
    """A chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png_with(*chunks, last=False):
    """The PNG of `RGB` with more chunks before its pixels, or after them."""
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    content = file.getvalue()
    at = content.index(b"IEND" if last else b"IDAT") - 4
    return content[:at] + b"".join(chunks) + content[at:]


@pytest.fixture
def folder(tmp_path):
    """Two good pictures, and files that are no pictures or cannot be read."""
    for name in (".ipynb_checkpoints", "sub"):
        (tmp_path / name).mkdir()
    for name in ("a.jfif", "b.PNG", "sub/c.jpg", ".ipynb_checkpoints/a-checkpoint.png"):
        Image.fromarray(RGB).save(tmp_path / name, "JPEG" if name[0] == "a" else "PNG")
    for name in ("._a.jfif", ".hidden.png", "sub/._c.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")  # what macOS writes beside a file
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    (tmp_path / "raw.CR2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_hidden_files_are_passed_over_and_others_are_listed(folder):
    names = ["IMG_1.HEIC", "a.jfif", "b.PNG", "notes.txt", "raw.CR2"]
    assert picture_files.listed(folder) == names
    assert picture_files.listed(folder, deep=True) == [*names, "sub/c.jpg"]
    assert [n for n in names if picture_files.is_picture(n)] == [n for n in names if n[0] != "n"]
    with pytest.raises(FileNotFoundError):
        picture_files.listed(folder / "absent")


def test_one_module_opens_pictures():
    found = {
        (path.stem, word)
        for path in (ROOT / "prosam_jax").rglob("*.py")
        for word in ("Image.open(", "registered_extensions(")
        if word in path.read_text()
    }
    assert {path for path, _ in found} == {"picture_files"}


def test_pictures_of_phones_and_cameras_are_named_with_what_to_install(folder):
    for name, words in (
        ("IMG_1.HEIC", ("HEIC", "pip install pillow-heif")),
        ("raw.CR2", ("raw picture", "convert it to JPEG", "rawpy")),
    ):
        with pytest.raises(UserError) as error:
            images.read(folder / name)
        told(error, folder / name, *words)
    (folder / "a.jpg").write_bytes(HEIC)  # as phones and chats rename them
    with pytest.raises(UserError) as error:
        images.read(folder / "a.jpg")
    told(error, "a.jpg", "pillow-heif")
    with pytest.raises(UserError) as error:
        images.read_labels(io.BytesIO(HEIC), "mask of 7")
    told(error, "mask of 7", "pillow-heif")
    (folder / "IMG_1.HEIC").write_bytes((folder / "b.PNG").read_bytes())  # only called so
    np.testing.assert_array_equal(images.read(folder / "IMG_1.HEIC"), RGB)


def test_a_raw_picture_is_not_taken_for_the_tiff_in_it(tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "thumbnail.tif")
    (tmp_path / "photo.NEF").write_bytes((tmp_path / "thumbnail.tif").read_bytes())
    with pytest.raises(UserError) as error:
        images.read(tmp_path / "photo.NEF")
    told(error, "photo.NEF", "raw picture")


@pytest.fixture
def fresh():
    """Forgets which formats are read, before and after."""
    picture_files._suffixes.cache_clear()
    yield
    picture_files._suffixes.cache_clear()


def test_heic_is_read_with_the_plug_in(folder, monkeypatch, fresh):
    def opener():
        monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
        accept = lambda head: head.startswith(HEIC[:12])  # noqa: E731
        read = lambda file, name: file.close() or Image.open(folder / "b.PNG")  # noqa: E731
        monkeypatch.setitem(Image.OPEN, "HEIF", (read, accept))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])

    plug_in = types.SimpleNamespace(register_heif_opener=opener)
    monkeypatch.setitem(sys.modules, "pillow_heif", plug_in)
    np.testing.assert_array_equal(images.read(folder / "IMG_1.HEIC"), RGB)


LONG = bytes(2 << 20)  # more than Pillow lets a text grow to


@pytest.mark.parametrize("last", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "more",
    [
        chunk(b"iCCP", b"long\0\0" + zlib.compress(LONG)),
        chunk(b"zTXt", b"long\0\0" + zlib.compress(LONG)),
        chunk(b"iTXt", b"long\0\1\0\0\0" + zlib.compress(LONG)),
        chunk(b"tEXt", b"long\0" + LONG * 40),
        chunk(b"tEXt", b"bad\0text")[:-4] + b"\0\0\0\0",
    ],
    ids=["iCCP", "zTXt", "iTXt", "tEXt", "a broken text"],
)
def test_long_texts_and_profiles_do_not_refuse_a_picture(tmp_path, more, last):
    (tmp_path / "a.png").write_bytes(png_with(more, last=last))
    for file in (tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(png_with(more))):
        np.testing.assert_array_equal(np.asarray(images.load(file)), RGB)


def test_an_orientation_in_a_text_is_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes()
    profile = f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    for more in (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"iTXt", xmp),
        chunk(b"eXIf", content.removeprefix(b"Exif\0\0")),
    ):
        for last in (False, True):
            found = images.load(io.BytesIO(png_with(more, last=last)))
            np.testing.assert_array_equal(np.asarray(found), np.rot90(RGB, -1))


def _exif(*entries, more=b""):
    """EXIF data of (tag, type, count, content) that lie as some cameras write them."""
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHI4s", *x) for x in entries) + bytes(4) + more


TURN = (0x0112, 3, 1, b"\6\0\0\0")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the data
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (_exif(TURN, (0x011A, 5, 1, b"\x26\0\0\0"), more=bytes(8)), True),
        (_exif(TURN, (0x011A, 5, 1, b"\xff\xff\xff\x7f")), True),
        (_exif(TURN, (0x8769, 3, 1, b"\1\0\0\0")), True),
        (_exif(TURN, (0x8825, 2, 4, b"abc\0")), True),
        (_exif((0x0112, 4, 1, b"\6\0\0\0")), True),
        (_exif((0x0112, 3, 2, b"\6\0\6\0")), True),
        (_exif((0x0112, 3, 1, b"\0\0\0\0")), False),
        (_exif((0x0112, 3, 1, b"\x63\0\0\0")), False),
        (_exif((0x0112, 2, 2, b"6\0\0\0")), False),
        (_exif((0x0112, 5, 1, b"\xff\xff\xff\x7f")), False),
        (b"Exif\0\0garbage, and nothing of a TIFF", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (b"Exif\0\0", False),
    ],
    ids=[
        *("0/0", "rational elsewhere", "IFD as short", "GPS as text", "long", "two", "0", "99"),
        *("text", "a fraction elsewhere", "garbage", "IFD elsewhere", "empty"),
    ],
)
def test_of_exif_data_only_the_orientation_matters(tmp_path, kind, exif, turned):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, 12:] = 255  # the right half; below if turned
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif)
    wanted = np.rot90(pixels, -1) if turned else pixels
    assert images.size(path) == wanted.shape[1::-1]
    assert np.abs(images.read(path).astype(int) - wanted).max() < 16


def test_names_are_equal_in_either_form(tmp_path):
    one, other = (unicodedata.normalize(form, "é ü") for form in ("NFC", "NFD"))
    assert one != other and picture_files.nfc(other) == one
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name, number in ((other, 1), (f"{one} 2", 1), ("x", 2), ("y", 2)):
        spelled = one if name == other else unicodedata.normalize("NFD", name)
        Image.fromarray(RGB).save(tmp_path / f"images/{name}.png")
        Image.new("L", (7, 5), number).save(tmp_path / f"masks/{spelled}.png")
    (tmp_path / "classes.txt").write_text(f"{other}\nox\n")
    (tmp_path / "mine.txt").write_text(f"{one}\n{other} 2.png\n")
    folder = find_folder(str(tmp_path))
    assert check(folder).faults == {}
    assert (folder.labels(f"{other}.png") == 1).all()
    for novel in (one, other):
        cfg = DataConfig(
            name="folder", root=str(tmp_path), novel=novel, val_list="mine", image_size=32
        )
        episodes = own_episodes(cfg, "test", seed=0, length=2)
        assert episodes.fold.entries == {1: (f"{other}.png", f"{one} 2.png")}
    Image.fromarray(RGB).save(tmp_path / f"images/{one}.jpg")
    (fault,) = check(find_folder(str(tmp_path))).faults.values()
    assert "share one mask" in fault


def test_targets_that_cannot_be_read_are_named(folder, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("out")
    flags = {"overlay": False, "uncertainty": False, "as_json": False, "force": False}
    todo = segment_files.plan(folder, out, **flags)
    assert [file.name for file in todo.outputs] == ["IMG_1.HEIC", "a.jfif", "b.PNG", "raw.CR2"]
    assert_lines(capsys.readouterr().err, ("passed over", "notes.txt"))
    bad = {}
    found = segment_files._batches(list(todo.outputs), 9, lambda file, error: bad.update({file: 1}))
    assert [name.name for names, _ in found for name in names] == ["a.jfif", "b.PNG"]
    assert [file.name for file in bad] == ["IMG_1.HEIC", "raw.CR2"]


def test_two_forms_of_one_name_get_two_masks(tmp_path):
    (tmp_path / "in").mkdir()
    for form, end in (("NFC", "jpg"), ("NFD", "png")):
        (tmp_path / "in" / f"{unicodedata.normalize(form, 'É')}.{end}").touch()
    flags = {"overlay": False, "uncertainty": False, "as_json": False, "force": False}
    todo = segment_files.plan(tmp_path / "in", tmp_path / "out", **flags)
    names = {paths["mask"].name for paths in todo.outputs.values()}
    assert {unicodedata.normalize("NFC", name) for name in names} == {"É.jpg.png", "É.png.png"}


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError) as error:
        images.read(tmp_path / "a.png")
    told(error, "a.png", "pipe")


def black_png(side):
    """A PNG of one bit, a hundred kilobytes for the most pixels that are read."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    packed = zlib.compressobj()
    pixels = packed.compress(bytes(side * (1 + -(-side // 8)))) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PEAK = """
import resource, sys, warnings
from prosam_jax import images
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = getattr(images, sys.argv[1])(sys.argv[2])
assert found.shape[:2] == (13300, 13300) and not found.any()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_pictures_of_the_most_pixels_take_little_more_than_their_pixels(tmp_path):
    (tmp_path / "most.png").write_bytes(black_png(13300))
    size = (tmp_path / "most.png").stat().st_size
    assert size < 100_000
    for read, most in (("read", 1.6e6), ("read_mask", 0.9e6), ("read_labels", 0.7e6)):
        command = [sys.executable, "-c", PEAK, read, str(tmp_path / "most.png")]
        done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
        assert int(done.stdout) < most, read


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    (tmp_path / "bomb.png").write_bytes(black_png(20_000))
    for read in (images.read, images.read_mask, images.read_labels, images.size, images.load):
        with pytest.raises(UserError) as error:
            read(tmp_path / "bomb.png")
        told(error, "bomb.png", "178,956,970 pixels", "make it smaller")


def test_a_lack_of_memory_is_told(monkeypatch, tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")

    def fails(image):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fails)
    with pytest.raises(UserError) as error:
        images.read(tmp_path / "a.png")
    told(error, "a.png", "memory", "make it smaller")


def test_names_print_on_a_console_that_does_not_know_their_letters(tmp_path):
    root = tmp_path / "日本"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("ä\n", "utf-8")
    Image.fromarray(RGB).save(root / "images/ö.png")
    Image.new("L", (3, 5), 1).save(root / "masks/ö.png")
    command = [sys.executable, "-m", "prosam_jax", "prepare", "folder", "--check", "--root", root]
    for encoding, shown in (("ascii", "\\xf6.png"), ("latin-1", "ö.png"), ("cp437", "ö.png")):
        environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 1
        said = done.stdout.decode(encoding)
        assert shown in said and "\\u65e5" in said and "bad files: 1" in said
        assert not done.stderr
