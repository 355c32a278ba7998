"""Any bytes give a picture or one line: mutated files of six formats, with every reader.

FUZZ=100 tries a hundred times as many.
"""

import functools
import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from prosam_jax import images
from prosam_jax.errors import UserError

EXAMPLES = 80 * int(os.environ.get("FUZZ", "1"))
KINDS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")
SIDE = 24


@functools.cache
def _seeds(kind):
    """Small files of a format, in its modes and compressions, with EXIF data and profiles."""
    gray = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8) * 5
    whole = Image.fromarray(np.dstack([gray, gray.T, 255 - gray]))
    modes = {
        "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "TIFF": ("1", "L", "P", "RGB", "I;16", "F", "CMYK", "LA"),
        "GIF": ("L", "P"),
        "BMP": ("1", "L", "P", "RGB"),
        "WEBP": ("RGB", "RGBA"),
    }[kind]
    ways = {
        "PNG": ({},),
        "JPEG": ({}, {"progressive": True}),
        "TIFF": ({}, *({"compression": f"tiff_{c}"} for c in ("lzw", "adobe_deflate")),
                 {"compression": "packbits"}),
        "GIF": ({}, {"save_all": True, "append_images": [whole.convert("P")]}),
        "BMP": ({},),
        "WEBP": ({}, {"lossless": True}),
    }[kind]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.5
    found = []
    for mode in modes:
        for way in ways:
            deep = Image.fromarray(gray.astype(np.uint16) << 8)
            image = deep if mode == "I;16" else whole.convert(mode)
            more = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
            more |= {"icc_profile": b"profile " * 9} if kind in ("PNG", "JPEG", "WEBP") else {}
            file = io.BytesIO()
            image.save(file, kind, **more, **way)
            found.append(file.getvalue())
    return found


@st.composite
def mutated(draw, kind):
    """A file of a format with some bytes changed, cut out, doubled or cut off."""
    content = bytearray(draw(st.sampled_from(_seeds(kind))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        how = draw(st.sampled_from(("byte", "number", "cut", "double", "end", "insert")))
        if how == "byte":
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "number":
            order, form = draw(st.sampled_from(("<", ">"))), draw(st.sampled_from("HI"))
            number = draw(st.sampled_from((0, 1, 2, 7, 255, 256, 32767, 65535)))
            content[at : at + struct.calcsize(form)] = struct.pack(order + form, number)
        elif how == "cut":
            del content[at : at + draw(st.integers(1, 16))]
        elif how == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
        elif how == "end":
            del content[at:]
        else:
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
    content = bytes(content)
    return _with_sums(content) if kind == "PNG" and draw(st.booleans()) else content


def _with_sums(content):
    """A PNG's chunks with right checksums, so that more than the first is read."""
    made, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        part = content[at + 4 : at + 8 + length]
        made += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        at += 12 + length
    return made + content[at:]


def _agree(content):
    """Reads a file in all ways; those that succeed agree."""
    results = {}
    for name, read in {
        "read": lambda file: images.load(file),
        "stored": lambda file: images.load(file, turn=False),
        "square": lambda file: images.load(file, square=4),
        "size": images.size,
        "stored size": lambda file: images.size(file, turn=False),
        "labels": images.read_labels,
    }.items():
        try:
            results[name] = read(io.BytesIO(content))
        except UserError as error:
            line = str(error)
            assert "\n" not in line and line.startswith(("image", "mask", "cannot read")), line
    shown, size = results.get("read"), results.get("size")
    if shown:
        assert shown.mode == "RGB" and size == shown.size
        assert sorted(results["stored size"]) == sorted(size)
    if "labels" in results:
        assert results["labels"].dtype == np.uint8
        assert results["labels"].shape[::-1] in (results["stored size"], size)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Headers that tell of many pixels are refused, so that no time goes into black ones."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is odd
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_give_a_picture_or_one_line(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / f"a.{kind.lower()}"

    @settings(max_examples=EXAMPLES, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(mutated(kind))
    def tried(content):
        _agree(content)
        path.write_bytes(content)
        for read in (images.read, images.read_mask):
            try:
                found = read(path)
            except UserError as error:
                assert "\n" not in str(error) and str(path) in str(error)
            else:
                assert found.size and found.dtype in (np.uint8, np.bool_)

    tried()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(
    st.binary(max_size=200),
    st.sampled_from((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"GIF89a", b"BM", b"P5 ",
                     b"RIFF\0\0\0\0WEBPVP8 ", b"8BPS", b"\0\0\1\0", b"\0\0\0\x18ftypavif")),
)  # fmt: skip
@example(b"", b"")
def test_any_bytes_give_a_picture_or_one_line(content, head):
    _agree(head + content)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_cut_file_no_pixels_are_made_up(kind):
    for content in _seeds(kind):
        for part in (len(content) // 3, len(content) // 2):
            with pytest.raises(UserError):
                images.load(io.BytesIO(content[:part]))
