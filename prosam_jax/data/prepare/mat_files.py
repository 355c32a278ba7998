"""Reads a table of numbers out of a struct in a MATLAB 5 file, as SBD publishes its masks.

SciPy's reader makes whatever a file claims to hold, of any size and depth. This one decompresses
`LARGEST` bytes at most, follows one path (a variable, one of its fields) and looks at nothing else.
The format is MathWorks' "MAT-File Format", chapter 1.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Num

LARGEST = 1 << 22  # bytes; SBD's have less than 1 MB
HEADER = 128
MATRIX, COMPRESSED, STRUCT = 14, 15, 2
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}

Order = Literal["little", "big"]


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """An array of MATLAB's: its class, its shape, its name, and the elements that hold it."""

    kind: int
    shape: tuple[int, ...]
    name: bytes
    rest: Iterator[tuple[int, bytes]]


def field(content: bytes, variable: str, name: str) -> Num[np.ndarray, "h w"]:
    """The field of a struct in the content of a file, which must be a table of real numbers.

    Args:
        content: The file's bytes.
        variable: Name of the variable, a struct of one element.
        name: Name of the field.

    Raises:
        ValueError: The file is damaged or larger than `LARGEST`, or has no such table.
    """
    if len(content) > LARGEST:
        raise ValueError(f"has more than {LARGEST:,} bytes")
    order = _order(content)
    for kind, data in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            ((kind, data),) = _elements(_decompressed(data), order)
        if kind == MATRIX and (found := _matrix(data, order)).name == variable.encode():
            return _table(_field_of(found, name.encode(), order), order)
    raise ValueError(f"has no {variable}")


def _order(content: bytes) -> Order:
    mark = content[HEADER - 2 : HEADER]
    if mark not in (b"IM", b"MI"):
        raise ValueError("is no MATLAB 5 file")
    return "little" if mark == b"IM" else "big"


def _elements(data: bytes, order: Order) -> Iterator[tuple[int, bytes]]:
    """Type and content of one element after the other."""
    at = 0
    while at < len(data):
        if len(data) < at + 8:
            raise ValueError("is cut short")
        first = int.from_bytes(data[at : at + 4], order)
        if small := first >> 16:  # up to four bytes in the tag itself
            kind, size, start, following = first & 0xFFFF, small, at + 4, at + 8
        else:
            kind, size, start = first, int.from_bytes(data[at + 4 : at + 8], order), at + 8
            following = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if len(data) < start + size or small > 4:
            raise ValueError("is cut short")
        yield kind, data[start : start + size]
        at = following


def _decompressed(data: bytes) -> bytes:
    reader = zlib.decompressobj()
    try:
        found = reader.decompress(data, LARGEST)
    except zlib.error as error:
        raise ValueError(f"is damaged ({error})") from error
    if reader.unconsumed_tail:
        raise ValueError(f"has more than {LARGEST:,} bytes when decompressed")
    if not reader.eof:
        raise ValueError("is cut short")
    return found


def _matrix(data: bytes, order: Order) -> _Matrix:
    rest = _elements(data, order)
    flags, shape, name = _next(rest), _integers(_next(rest), order), _next(rest)
    kind = int.from_bytes(flags[:4], order)
    return _Matrix(kind & 0xFF, shape, name, rest)


def _field_of(found: _Matrix, name: bytes, order: Order) -> bytes:
    """The content of the matrix that a struct has under a name."""
    if found.kind != STRUCT or found.shape != (1, 1):
        raise ValueError(f"has no struct of one element as {found.name.decode(errors='replace')}")
    (width,) = _integers(_next(found.rest), order)
    names = _next(found.rest)
    if width < 1:
        raise ValueError("has a struct without names")
    for start in range(0, len(names), width):
        data = _next(found.rest)
        if names[start : start + width].rstrip(b"\0") == name:
            return data
    raise ValueError(f"has no field {name.decode()}")


def _table(data: bytes, order: Order) -> Num[np.ndarray, "h w"]:
    found = _matrix(data, order)
    kind, numbers = next(found.rest, (0, b""))
    if kind not in NUMBERS or next(found.rest, None) is not None:
        raise ValueError("has no table of real numbers")
    dtype = np.dtype(NUMBERS[kind]).newbyteorder("<" if order == "little" else ">")
    h, w = found.shape if len(found.shape) == 2 else (0, 0)
    if min(h, w) < 1 or h * w * dtype.itemsize != len(numbers):
        raise ValueError(f"has {len(numbers):,} bytes for a table of shape {found.shape}")
    table = np.frombuffer(numbers, dtype).reshape(h, w, order="F")
    return table.astype(dtype.newbyteorder("="))


def _integers(data: bytes, order: Order) -> tuple[int, ...]:
    if len(data) % 4 or not data:
        raise ValueError("has no integers where they belong")
    return tuple(
        int.from_bytes(data[i : i + 4], order, signed=True) for i in range(0, len(data), 4)
    )


def _next(elements: Iterator[tuple[int, bytes]]) -> bytes:
    for _, data in elements:
        return data
    raise ValueError("is cut short")
