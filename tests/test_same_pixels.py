"""One set of rules: odd files are the same pixels, or the same error, to all that open pictures."""

import dataclasses
import types

import numpy as np
import pytest
from conftest import told
from PIL import Image
from small import prompt_encoder_file

from prosam_jax import SamPredictor, Segmenter, images
from prosam_jax.config import SAMConfig
from prosam_jax.data.datasets.folder_files import find_folder
from prosam_jax.errors import UserError
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files

HEIGHT, WIDTH = 32, 40
PIXELS = np.random.default_rng(0).integers(20, 256, (4, 5, 3), np.uint8).repeat(8, 0).repeat(8, 1)
GRAY = PIXELS[..., 0]
SHADES = GRAY[..., None].repeat(3, 2)
MOST = GRAY.max().item()
ALPHA = Image.fromarray(255 - GRAY)


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def _with_alpha(image):
    image.putalpha(ALPHA)
    return image


def _palette(image):
    image = image.quantize(20)  # as many as it has
    assert image.mode == "P"
    return image


# Of each EXIF orientation what a viewer shows, by the standard's definition of row 0 and column 0.
TURNED = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.swapaxes(0, 1),
    6: np.rot90(PIXELS, -1),
    7: PIXELS[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(PIXELS),
}
PICTURE = Image.fromarray(PIXELS)
# Name of the file, the image in it, how it is saved, and its pixels.
GOOD = {
    **{f"EXIF {n}": ("a.png", PICTURE, _exif(n), held) for n, held in TURNED.items()},
    "EXIF 6 in TIFF": ("a.tif", PICTURE, _exif(6), TURNED[6]),
    "gray": ("a.png", Image.fromarray(GRAY), {}, SHADES),
    "16 bit": ("a.png", Image.fromarray(GRAY.astype(np.uint16) * 257), {}, SHADES),
    "16 bit TIFF": ("a.tif", Image.fromarray(GRAY.astype(np.uint16) << 8), _exif(3),
                    SHADES[::-1, ::-1]),
    "16 in 32 bit": ("a.tif", Image.fromarray(GRAY.astype(np.int32) * 256 + 99), {}, SHADES),
    "palette": ("a.png", _palette(PICTURE), {}, PIXELS),
    "palette, one colour clear": ("a.png", _palette(PICTURE), {"transparency": 3}, PIXELS),
    "palette, half clear": ("a.png", _palette(PICTURE), {"transparency": b"\x00\x80"}, PIXELS),
    "alpha": ("a.png", _with_alpha(Image.fromarray(PIXELS)), {}, PIXELS),
    "LA": ("a.png", _with_alpha(Image.fromarray(GRAY)), {}, SHADES),
    "CMYK": ("a.tif", Image.fromarray(np.dstack([255 - PIXELS, 0 * GRAY]), "CMYK"), {}, PIXELS),
    "1 bit": ("a.png", Image.fromarray(GRAY > 99), {}, np.where(SHADES > 99, 255, 0)),
    "two frames": ("a.png", PICTURE, {"save_all": True, "append_images": [ALPHA.convert("RGB")]},
                   PIXELS),
    "PNG called .jpg": ("a.jpg", PICTURE, {"format": "PNG"}, PIXELS),
}  # fmt: skip
# The same, and what its error names.
BAD = {
    "12 in 16 bit": (
        "a.png",
        Image.fromarray(GRAY.astype(np.uint16) * 16),
        ("a.png", f"{MOST * 16}", "save"),
    ),
    "32 bit": (
        "a.tif",
        Image.fromarray(GRAY.astype(np.int32) << 9),
        ("a.tif", f"{MOST << 9}", "save"),
    ),
    "below 0": ("a.tif", Image.fromarray(-GRAY.astype(np.int32)), ("a.tif", f"-{MOST}", "save")),
    "fractions": ("a.tif", Image.fromarray(GRAY / np.float32(255)), ("a.tif", "fractions", "save")),
    "cut short": ("a.png", lambda content: content[:-200], ("a.png", "copy the file again")),
    "text": ("a.jpg", lambda content: b"<html>", ("a.jpg", "copy the file again")),
    "empty": ("a.jpg", lambda content: b"", ("a.jpg", "copy the file again")),
    "missing": ("a.jpg", None, ("a.jpg",)),
}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """What a segmenter makes of a picture, which depends on every pixel."""
    model = Segmenter.from_pretrained(
        prompt_encoder_file(tmp_path_factory.mktemp("model") / "m.safetensors")
    )
    model.set_reference(PIXELS, box=[5, 5, 25, 30])

    def see(image):
        found = model.segment(image)
        return [*found.masks.shape, *found.expected_iou.tolist()]

    return see


@pytest.fixture(scope="module")
def predictor():
    """What SAM makes of a picture."""
    cfg = dataclasses.replace(SAMConfig.tiny(), image_size=(64, 64))
    sam = SamPredictor(files.random(lambda rngs: Sam(cfg, rngs=rngs), 0))

    def see(image):
        sam.set_image(image)
        return np.asarray(sam.get_image_embedding())

    return see


@pytest.fixture
def folder(tmp_path):
    """What a folder of one's own makes of the picture in it."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")

    def see(image):
        if isinstance(image, np.ndarray):
            return image
        missing = not image.exists()
        image.touch()
        Image.new("L", see.size).save(tmp_path / "masks/a.png")
        found = find_folder(str(tmp_path))
        if missing:
            image.unlink()
        return np.asarray(found.image(image.name))

    see.size = WIDTH, HEIGHT
    return see


EVERYWHERE = pytest.mark.parametrize(
    "reader",
    [
        "folder",
        pytest.param("predictor", marks=pytest.mark.slow),
        pytest.param("segmenter", marks=pytest.mark.slow),
    ],
)


@EVERYWHERE
def test_what_is_compared_tells_pictures_apart(request, reader, tmp_path):
    see = request.getfixturevalue(reader)
    seen = [see(np.ascontiguousarray(image)) for image in (*TURNED.values(), PIXELS ^ 1)]
    for i, one in enumerate(seen):
        assert all(not np.array_equal(one, other) for other in seen[:i])


@EVERYWHERE
@pytest.mark.parametrize("name", GOOD)
def test_odd_files_are_the_same_pixels(request, reader, name, folder, tmp_path):
    file, image, options, expected = GOOD[name]
    expected = np.ascontiguousarray(expected.astype(np.uint8))
    path = tmp_path / "images" / file
    image.save(path, **options)
    np.testing.assert_array_equal(images.read(path), expected)
    folder.size = expected.shape[1], expected.shape[0]
    see = request.getfixturevalue(reader)
    np.testing.assert_array_equal(see(path), see(expected))


@EVERYWHERE
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_the_same_error(request, reader, name, folder, tmp_path):
    file, content, words = BAD[name]
    path = tmp_path / "images" / file
    if isinstance(content, Image.Image):
        content.save(path)
    elif isinstance(content, types.FunctionType):
        PICTURE.save(path, "PNG")
        path.write_bytes(content(path.read_bytes()))
    see = request.getfixturevalue(reader)
    with pytest.raises(UserError) as known:
        images.read(path)
    told(known, *words)
    with pytest.raises(UserError) as caught:
        see(path)
    assert str(caught.value) == str(known.value)
    assert isinstance(caught.value, FileNotFoundError) == (name == "missing")
