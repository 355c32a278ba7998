"""MATLAB files as SBD has them, against SciPy's reader; damaged and hostile ones."""

import io
import zlib

import numpy as np
import pytest
import scipy.io

from prosam_jax.data.prepare import mat_files
from prosam_jax.data.prepare.pascal import sbd_labels

TABLE = np.random.default_rng(0).integers(0, 21, (37, 50)).astype(np.uint8)


def _mat(table, *, compressed=True, **more):
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[np.zeros((5, 4), np.uint8)] for _ in range(20)]
    present = np.arange(3, dtype=np.uint8)[:, None]
    held = {"Boundaries": boundaries, "Segmentation": table, "CategoriesPresent": present}
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": held, **more}, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_the_table_is_scipys(dtype, compressed):
    content = _mat(TABLE.astype(dtype), compressed=compressed)
    held = scipy.io.loadmat(io.BytesIO(content), struct_as_record=False, squeeze_me=True)
    found = mat_files.field(content, "GTcls", "Segmentation")
    assert found.dtype == held["GTcls"].Segmentation.dtype == dtype
    np.testing.assert_array_equal(found, held["GTcls"].Segmentation)
    labels = sbd_labels(content)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, TABLE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (3, 1)])
def test_small_tables_lie_in_their_tags(shape):
    table = TABLE[: shape[0], : shape[1]]
    np.testing.assert_array_equal(sbd_labels(_mat(table, compressed=False)), table)


def _element(kind, data, order="little"):
    return kind.to_bytes(4, order) + len(data).to_bytes(4, order) + data + bytes(-len(data) % 8)


def _matrix(kind, shape, name, *elements, order="little"):
    flags = kind.to_bytes(4, order) + bytes(4)
    sizes = b"".join(x.to_bytes(4, order, signed=True) for x in shape)
    parts = (_element(6, flags, order), _element(5, sizes, order), _element(1, name, order))
    return _element(14, b"".join((*parts, *elements)), order)


def _file(*elements, mark=b"IM"):
    return bytes(124) + b"\0\1" + mark + b"".join(elements)


def _struct(*fields, names=(b"Segmentation",), shape=(1, 1), width=16, order="little"):
    held = b"".join(x.ljust(width, b"\0") for x in names)
    size = _element(5, width.to_bytes(4, order, signed=True), order)
    return _matrix(2, shape, b"GTcls", size, _element(1, held, order), *fields, order=order)


def test_the_other_byte_order_is_read():
    numbers = _element(4, np.array([1, 2, 3, 20], ">u2").tobytes(), "big")
    table = _matrix(11, (2, 2), b"", numbers, order="big")
    np.testing.assert_array_equal(
        sbd_labels(_file(_struct(table, order="big"), mark=b"MI")), [[1, 3], [2, 20]]
    )


NUMBERS = _element(2, bytes([1, 2, 3, 4]))
BOMB = _element(15, zlib.compress(bytes(1 << 26)))[: 8 + len(zlib.compress(bytes(1 << 26)))]
DEEP = b""
for _ in range(2000):
    DEEP = _matrix(1, (1, 1), b"", DEEP)

BROKEN = {
    "nothing": (b"", "MATLAB 5"),
    "another format": (b"MATLAB 7.3 MAT-file, HDF5".ljust(200), "MATLAB 5"),
    "no variable": (_file(_matrix(9, (2, 2), b"x", NUMBERS)), "no GTcls"),
    "no struct": (_file(_matrix(9, (2, 2), b"GTcls", NUMBERS)), "no struct"),
    "no field": (_file(_struct(b"", names=())), "no field Segmentation"),
    "a bomb": (_file(BOMB), "more than 4,194,304 bytes"),
    "a huge table": (_file(_struct(_matrix(9, (2**31 - 1, 2**31 - 1), b"", NUMBERS))), "shape"),
    "a negative shape": (_file(_struct(_matrix(9, (-2, -2), b"", NUMBERS))), "shape"),
    "three axes": (_file(_struct(_matrix(9, (2, 2, 1), b"", NUMBERS))), "shape"),
    "many elements": (_file(_struct(shape=(2**31 - 1, 1))), "no struct of one element"),
    "names of no width": (_file(_struct(width=0)), "without names"),
    "names of negative width": (_file(_struct(width=-16, names=())), "without names"),
    "cells": (_file(_struct(DEEP)), "table of real numbers"),
    "complex": (_file(_struct(_matrix(9, (2, 2), b"", NUMBERS, NUMBERS))), "real numbers"),
    "no numbers": (_file(_struct(_matrix(9, (2, 2), b""))), "real numbers"),
    "text": (_file(_struct(_matrix(4, (2, 2), b"", _element(16, b"abcd")))), "real numbers"),
    "another class": (_mat(np.full((3, 3), 21, np.uint8)), "0-20"),
    "a negative class": (_mat(np.full((3, 3), -1, np.int16)), "0-20"),
    "fractions": (_mat(np.full((3, 3), 1.5)), "0-20"),
    "no number": (_mat(np.full((3, 3), np.nan)), "0-20"),
    "a large file": (_file(bytes(1 << 23)), "more than 4,194,304 bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_and_hostile_files_are_named(case):
    content, word = BROKEN[case]
    with pytest.raises(ValueError, match=word):
        sbd_labels(content)


@pytest.mark.parametrize("compressed", [True, False])
def test_every_shorter_file_is_refused(compressed):
    content = _mat(TABLE[:9, :9], compressed=compressed)
    for size in range(0, len(content) - 8, 7):
        if compressed or size < content.index(TABLE[:9, :9].tobytes(order="F")) + 81:
            with pytest.raises(ValueError):
                sbd_labels(content[:size])
