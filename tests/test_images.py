"""The one reader: every kind of picture and mask that is taken, and what is said of the others."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import told
from PIL import Image, ImageOps

from prosam_jax import images, picture_files
from prosam_jax.data.transforms import resize_image
from prosam_jax.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (RGB[..., 0], np.repeat(RGB[..., :1], 3, 2)),
        (RGB[..., :1], np.repeat(RGB[..., :1], 3, 2)),
        (np.dstack([RGB, RGB[..., 0]]), RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB[..., 0]), np.repeat(RGB[..., :1], 3, 2)),
        (Image.fromarray(np.dstack([RGB, RGB[..., 0]])), RGB),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), np.repeat(RGB[..., :1], 3, 2)),
    ],
    ids=["uint8", "gray", "one", "rgba", "64", "32", "Pillow", "Pillow L", "Pillow RGBA", "16 bit"],
)
def test_pictures_of_every_kind(given, expected):
    found = images.read(given)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_tall_pictures_are_whole(tmp_path):
    tall = np.random.default_rng(1).integers(0, 256, (600, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.read(Image.fromarray(tall)), tall)
    Image.fromarray(tall).save(tmp_path / "tall.png")
    np.testing.assert_array_equal(images.read(tmp_path / "tall.png"), tall)


def test_files_are_turned_as_viewers_turn_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it clockwise
    path = tmp_path / "ein Bild ü.png"
    Image.fromarray(RGB).save(path, exif=exif)
    turned = np.rot90(RGB, -1)
    np.testing.assert_array_equal(images.read(path), turned)
    np.testing.assert_array_equal(images.read(str(path)), turned)
    with Image.open(path) as image:
        np.testing.assert_array_equal(images.read(image), turned)
    # Of a type that TIFFs cannot hold, as some cameras write it: the picture is as it is.
    odd = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x112, 3, 1, 6)
    odd += struct.pack("<HHIi", 0x100, 9, 1, -1) + b"\0\0\0\0"
    Image.fromarray(RGB).save(path, exif=odd)
    np.testing.assert_array_equal(images.read(path), turned)
    white = Image.fromarray((RGB[..., 0] > 99).astype(np.uint8) * 255)
    white.save(path, exif=exif)
    np.testing.assert_array_equal(images.read_mask(path), turned[..., 0] > 99)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RGB.astype(np.int64), ("int64", "(5, 7, 3)", "uint8")),
        (RGB > 9, ("bool", "(5, 7, 3)", "uint8")),
        (RGB[None], ("uint8", "(1, 5, 7, 3)", "height x width x 3")),
        (RGB[..., :2], ("uint8", "(5, 7, 2)", "height x width x 3")),
        (RGB[:0], ("uint8", "(0, 7, 3)")),
        (RGB * 1.0, ("float64", f"{RGB.max()}", "0-1", "uint8")),
        (np.full((2, 3), np.nan), ("float64", "nan")),
        (np.array(None), ("object", "()")),
        (Image.fromarray(RGB[..., 0] / np.float32(3)), ("fractions", "save it")),
        (Image.fromarray(RGB[..., 0].astype(np.int32) << 9), ("126976", "save it")),
        (
            Image.fromarray(RGB[..., 0].astype(np.uint16)),
            (f"{RGB[..., 0].max()}", "65535", "save it"),
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_what_is_no_picture_is_said(given, words):
    with pytest.raises(UserError) as error:
        images.read(given)
    told(error, "image", *words)


def test_arrays_may_lie_as_bgr_and_pictures_do_not_care():
    alpha = RGB[..., :1]
    for given in (RGB, np.dstack([RGB, alpha]), RGB / 255):
        np.testing.assert_array_equal(images.read(given, order="BGR"), RGB[..., ::-1])
    for given in (RGB[..., 0], Image.fromarray(RGB)):
        found = images.read(given, order="BGR")
        np.testing.assert_array_equal(found, images.read(given))
        assert found.flags.c_contiguous


def test_files_that_are_no_pictures_are_named(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(np.tile(RGB, (40, 40, 1))).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    for name in ("text.jpg", "cut.png"):
        with pytest.raises(UserError) as error:
            images.read(tmp_path / name)
        told(error, name, "copy the file again")
    with (
        Image.open(tmp_path / "cut.png") as cut,
        pytest.raises(UserError) as error,
    ):
        images.read(cut, "images[3]")
    told(error, "images[3]")
    with pytest.raises(UserError) as error:
        images.read(tmp_path)
    told(error, tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError) as error:
        images.read(tmp_path / "whole.png")
    told(error, "whole.png", "2,000 pixels")
    for read in (images.read, images.read_mask, images.load, images.size, images.read_labels):
        with pytest.raises(UserError) as error:
            read(tmp_path / "absent.jpg")
        told(error, "absent.jpg")
        assert isinstance(error.value, FileNotFoundError)


MASK = RGB[..., 0] > 99
PALETTE = Image.fromarray(MASK.astype(np.uint8) * 15)
PALETTE.putpalette(bytes(768))
# Index 0 is white: a packer puts the most frequent colour first.
WHITE_FIRST = Image.fromarray((~MASK).astype(np.uint8))
WHITE_FIRST.putpalette([255, 255, 255, 0, 0, 0])
# Two colours of which the brighter one is no white, numbered as a packer likes.
QUANTISED = Image.fromarray(np.uint8(MASK)[..., None] * np.uint8([[[200, 0, 0]]])).quantize(2)
CLEAR = Image.fromarray(np.dstack([np.full((*MASK.shape, 3), 255), MASK * 255]).astype(np.uint8))


@pytest.mark.parametrize(
    "given",
    [
        MASK,
        MASK[..., None],
        MASK.astype(np.int64),
        MASK.astype(np.uint8) * 15,
        MASK * 0.5,
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8)),
        Image.fromarray((MASK * 200 + 40).astype(np.uint8)),
        Image.fromarray(MASK.astype(np.uint16) * 65535),
        PALETTE,
        WHITE_FIRST,
        QUANTISED,
        CLEAR,
    ],
    ids=[
        *("bool", "one", "0 1", "0 15", "float", "1 bit", "L 0 1", "L gray", "16 bit", "palette"),
        *("white first", "red on black", "white on nothing"),
    ],
)
def test_masks_of_every_kind(given):
    found = images.read_mask(given)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, MASK)


def test_a_palette_without_white_marks_nothing():
    black = Image.fromarray(np.ones_like(MASK, np.uint8))
    black.putpalette([255, 255, 255, 0, 0, 0])
    assert not images.read_mask(black).any()


def test_a_photo_is_no_mask():
    photo = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for image in (Image.fromarray(photo), Image.fromarray(photo[..., 0])):
        with pytest.raises(UserError) as error:
            images.read_mask(image)
        told(error, "mask", "photo")
    soft = np.clip(np.hypot(*np.mgrid[-20:20, -25:25]) * 60 - 500, 0, 255).astype(np.uint8)
    assert 0 < images.read_mask(Image.fromarray(soft)).mean() < 1


def _file(image, kind):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file


def _loaded(file, size, *, fast=False):
    return resize_image(images.load(file, square=size if fast else 0), size).astype(int)


@pytest.mark.parametrize("square", [32, 64, 97])
def test_fast_decoding_stays_near_the_exact_pixels(square):
    small = np.random.default_rng(square).integers(0, 256, (29, 37, 3), dtype=np.uint8)
    file = _file(Image.fromarray(small).resize((523, 411), Image.Resampling.BICUBIC), "JPEG")
    exact, fast = _loaded(file, square), _loaded(file, square, fast=True)
    assert fast.shape == (square, square, 3)
    assert (fast != exact).any()  # 411 is four times each of these sides
    assert np.abs(fast - exact).mean() < 1


def test_fast_decoding_does_not_shift_what_it_shrinks():
    ramp = np.linspace(0, 255, 517, dtype=np.float32).astype(np.uint8)  # 4 does not divide 517
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (403, 517, 3)).copy())
    file = _file(image, "JPEG")
    assert np.abs(_loaded(file, 48, fast=True) - _loaded(file, 48)).max() <= 1


@pytest.mark.parametrize("kind, square", [("JPEG", 103), ("PNG", 20)])
def test_fast_decoding_changes_nothing_of_smaller_pictures_and_other_files(kind, square):
    rng = np.random.default_rng(3)
    file = _file(Image.fromarray(rng.integers(0, 256, (411, 523, 3), dtype=np.uint8)), kind)
    np.testing.assert_array_equal(_loaded(file, square, fast=True), _loaded(file, square))


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "I"])
def test_class_numbers_of_every_mode(tmp_path, mode):
    numbers = (RGB[..., 0] > 99).astype(np.uint8) * (1 if mode == "1" else 7)
    image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette([9, 9, 9] * 256)
    elif mode == "1":
        image = Image.fromarray(numbers > 0)
    elif mode != "L":
        image = Image.fromarray(numbers.astype(np.uint16 if mode == "I;16" else np.int32))
    assert image.mode == mode
    image.save(tmp_path / "mask.tif")
    found = images.read_labels(tmp_path / "mask.tif")
    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == np.uint8


def test_class_numbers_are_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB[..., 0]).save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(images.read_labels(tmp_path / "mask.png"), RGB[..., 0])
    assert images.size(tmp_path / "mask.png", turn=False) == (7, 5)
    assert images.size(tmp_path / "mask.png") == (5, 7)


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (Image.fromarray(RGB), "RGB"),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) + 300), f"{int(RGB[..., 0].max()) + 300}"),
        (Image.fromarray(np.dstack([RGB, RGB[..., 0]])).convert("LA"), "LA"),
    ],
    ids=["colours", "too large", "alpha"],
)
def test_what_is_no_mask_of_class_numbers_is_said(tmp_path, image, fault):
    image.save(tmp_path / "mask.png")
    with pytest.raises(UserError) as error:
        images.read_labels(tmp_path / "mask.png")
    told(error, tmp_path / "mask.png", fault)


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("square", [0, 16])
def test_a_picture_is_turned_as_its_mask_lies(tmp_path, turn, square):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 255, 80, dtype=np.uint8)  # dark at the left, and at the top as turned
    Image.fromarray(np.repeat(ramp[None], 64, 0)).save(path, exif=exif, quality=95)

    def dark_top(**settings):
        found = np.asarray(images.load(path, turn=turn, square=square, **settings)).astype(int)
        assert found.shape == ((square, square, 3) if square else found.shape)
        return found[0, -1, 0] < 20

    assert images.size(path, turn=turn) == ((64, 80) if turn else (80, 64))
    assert dark_top() == turn
    assert dark_top(fit=images.size(path, turn=turn)) == turn
    assert not dark_top(fit=(80, 64))
    for fit in [(79, 64)] if turn else [(79, 64), (64, 80)]:
        with pytest.raises(UserError) as error:
            dark_top(fit=fit)
        told(error, "a.jpg", f"{fit[0]} x {fit[1]}")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, True) for name in ("a.jpg", "b/a b.JPEG", "ü.Tiff", "a.webp", "a.ppm", "a.jp2")),
        *((name, False) for name in ("a", "jpg", "a.jpg.txt", "a.h5", "a.eps", "a.pdf", "a.mpg")),
    ],
)
def test_suffixes_are_those_that_pillow_reads(name, known):
    assert picture_files.is_picture(name) == known


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpg"])
def test_every_orientation_is_pillows(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{kind}"
    Image.fromarray(RGB).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    with Image.open(path) as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(images.read(path), wanted)
    assert images.size(path) == wanted.shape[1::-1]
    np.testing.assert_array_equal(np.array(images.load(path)), wanted)


def test_an_object_that_is_only_opaque_is_a_mask(tmp_path):
    object_ = RGB[..., 0] > 99
    pixels = np.zeros((*object_.shape, 4), np.uint8)
    pixels[..., 3] = object_ * 255
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "cut.png"), object_)
    pixels[..., 3] = 255  # nothing is cut out
    assert not images.read_mask(Image.fromarray(pixels)).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_masks_without_a_pixel_are_refused(shape, dtype):
    with pytest.raises(UserError) as error:
        images.read_mask(np.zeros(shape, dtype))
    told(error, str(shape))


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(UserError) as error:
        images.read(tmp_path)
    told(error, str(tmp_path), "folder")


def _png(numbers, bits, colour=0):
    """A PNG of `bits` for each number, which Pillow writes for 1, 8 and 16 only."""
    rows = np.atleast_3d(numbers).reshape(len(numbers), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        spread = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = [np.packbits(row).tobytes() for row in spread.reshape(len(rows), -1)]
    head = struct.pack(">IIBBBBB", numbers.shape[1], len(numbers), bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    for kind, part in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + part))
        content += struct.pack(">I", len(part)) + kind + part + check
    return io.BytesIO(content)


AREAS = np.kron(np.arange(6).reshape(2, 3), np.ones((8, 8), int)).astype(np.uint8)  # 0 to 5


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_of_few_bits_gives_the_stored_numbers(tmp_path, bits):
    numbers = AREAS % min(2**bits, 6)
    file = _png(numbers, bits)
    np.testing.assert_array_equal(images.read_labels(file), numbers)
    object_ = numbers > 0
    path = tmp_path / "mask.png"
    for largest in {1, 2**bits - 1}:  # as numbers, and as white
        path.write_bytes(_png(object_ * largest, bits).getvalue())
        np.testing.assert_array_equal(images.read_mask(path), object_)
    if bits > 1:
        path.write_bytes(file.getvalue())
        with pytest.raises(UserError) as error:
            images.read_mask(path)
        told(error, path, ", ".join(map(str, range(min(2**bits, 6)))), "one object")


@pytest.mark.parametrize("form", ["P2 {w} {h} {most} {text}", "P5 {w} {h} {most} "])
@pytest.mark.parametrize("most", [5, 20, 255, 300, 65535])
def test_numbers_of_a_pgm_are_those_in_the_file(form, most):
    height, width = AREAS.shape
    text = " ".join(map(str, AREAS.ravel()))
    content = form.format(w=width, h=height, most=most, text=text).encode()
    if "5" in form:
        content += AREAS.astype(">u2" if most > 255 else np.uint8).tobytes()
    np.testing.assert_array_equal(images.read_labels(io.BytesIO(content)), AREAS)


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "jpeg in TIFF", "PNG after JPEG"])
def test_what_a_jpeg_adds_to_a_mask_is_no_object(tmp_path, quality, kind):
    disc = np.hypot(*np.mgrid[-60:60, -80:80]) < 47
    white = Image.fromarray(disc.astype(np.uint8) * 255)
    path = tmp_path / "mask"
    if kind == "JPEG2000":
        white.save(path, kind, quality_layers=[3], irreversible=True)
    elif kind == "jpeg in TIFF":
        white.save(path, "TIFF", compression="jpeg", quality=quality)
    else:
        white.save(path, "JPEG", quality=quality)
    with pytest.raises(UserError) as error:
        images.read_labels(path)
    told(error, path, "compressed with loss", "class numbers", "save the mask as PNG")
    if kind == "PNG after JPEG":
        with Image.open(path) as image:
            image.copy().save(path, "PNG")
    with Image.open(path) as image:
        assert (np.array(image) > 0).sum() - disc.sum() > 0
    np.testing.assert_array_equal(images.read_mask(path), disc)
    Image.fromarray(disc.astype(np.uint8) * 9).save(path, "JPEG", quality=quality)
    with pytest.raises(UserError) as error:
        images.read_mask(path)
    told(error, path, "JPEG", "save the mask as PNG")


def test_class_numbers_with_an_ignored_border_are_no_mask():
    """In SegmentationClassAug and the like, 255 is the border of the object and no white."""
    labels = np.zeros((40, 50), np.uint8)
    labels[10:31, 12:33] = 255
    labels[12:29, 14:31] = 15
    with pytest.raises(UserError) as error:
        images.read_mask(Image.fromarray(labels), "a.png")
    told(error, "a.png", "0, 15, 255", "labels == 1")
    np.testing.assert_array_equal(images.read_mask(labels == 15), labels == 15)
    soft = Image.fromarray((labels == 15).astype(np.uint8) * 255).resize((150, 120), 4)  # boxes
    soft = soft.resize((97, 75), Image.Resampling.BILINEAR)
    assert images.read_mask(soft).mean() == pytest.approx((labels == 15).mean(), abs=0.01)
    for levels in (4, 16):  # soft edges of few levels
        few = np.round(np.asarray(soft) / 255 * (levels - 1)) * (255 // (levels - 1))
        found = images.read_mask(Image.fromarray(few.astype(np.uint8)))
        assert found.mean() == pytest.approx((labels == 15).mean(), abs=0.01)


def _tiff(levels, planar):
    """A TIFF of 16-bit colours, pixel by pixel (1) or one colour after another (2)."""
    parts = list(levels.transpose(2, 0, 1)) if planar == 2 else [levels]
    pixels = b"".join(part.astype("<u2").tobytes() for part in parts)
    starts = [8 + i * parts[0].nbytes for i in range(len(parts))]
    entries, more = [], b""
    for tag, kind, *values in (
        (256, "I", levels.shape[1]), (257, "I", levels.shape[0]), (258, "H", 16, 16, 16),
        (259, "H", 1), (262, "H", 2), (273, "I", *starts),
        (277, "H", 3), (278, "I", levels.shape[0]), (279, "I", *(part.nbytes for part in parts)),
        (284, "H", planar),
    ):  # fmt: skip
        content = struct.pack(f"<{len(values)}{kind}", *values)
        if len(content) > 4:
            at = 8 + len(pixels) + len(more)
            content, more = struct.pack("<I", at), more + content + bytes(len(content) % 2)
        code = {"H": 3, "I": 4}[kind]
        entries.append(struct.pack("<HHI4s", tag, code, len(values), content))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    start = struct.pack("<I", 8 + len(pixels) + len(more))
    return io.BytesIO(b"II*\0" + start + pixels + more + directory)


def test_sixteen_bit_colours_of_a_tiff_are_read_or_refused():
    levels = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), np.uint16)
    found = images.load(_tiff(levels, 1))
    np.testing.assert_array_equal(np.asarray(found), levels >> 8)
    for file, words in (
        (_tiff(levels, 2), ("one after another", "save it as PNG")),  # Pillow gives other pixels
        (_tiff(levels >> 4, 1), ("4095 of 65535", "save it with 8 bits")),
    ):
        with pytest.raises(UserError) as error:
            images.load(file, "scan.tif")
        told(error, "scan.tif", *words)


@pytest.mark.parametrize("colour, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_twelve_bits_in_sixteen_are_told_in_every_form(tmp_path, colour, channels):
    levels = np.random.default_rng(0).integers(0, 4096, (9, 11, channels), np.uint16)
    levels[..., -1] = levels[..., -1] if channels in (1, 3) else 65535  # opaque
    path = tmp_path / "a.png"
    path.write_bytes(_png(levels, 16, colour).getvalue())
    for read in (images.read, images.load):
        with pytest.raises(UserError) as error:
            read(path)
        told(error, path, "65535", "almost black", "save it with 8 bits")
    levels <<= 4
    levels[..., -1] |= 65535 * (channels in (2, 4))
    path.write_bytes(_png(levels, 16, colour).getvalue())
    shown = levels[..., :3] if channels > 2 else np.repeat(levels[..., :1], 3, 2)
    np.testing.assert_array_equal(images.read(path), shown >> 8)
