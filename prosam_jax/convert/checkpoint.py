"""What a checkpoint holds, and how one in a safetensors file is read without torch."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import safetensors

from prosam_jax.errors import UserError, cut
from prosam_jax.weights import other_forms
from prosam_jax.weights.other_forms import AGAIN
from prosam_jax.weights.registry import sha256

HALF = ("F16", "BF16")
TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{"U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"},
}
"""NumPy's types by safetensors' names; bfloat16, which NumPy lacks, by its bits."""


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        path: The file.
        sha256: Its checksum, in hexadecimal.
        tensors: Its tensors by torch name; if the file's format allows it, they stay on disk until
            they are read.
        widened: Names of the half-precision tensors, which are converted to float32.
    """

    path: pathlib.Path
    sha256: str
    tensors: dict[str, np.ndarray]
    widened: list[str]


def read(path: pathlib.Path) -> Checkpoint:
    """Reads a safetensors file; its tensors are views of the mapped file.

    Half precision is widened to float32, which loses nothing.

    Raises:
        UserError: The file is missing, damaged or of another format; the message is one line.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file")
    other_forms.check(path)
    try:
        safetensors.safe_open(path, framework="numpy")  # checks the header against the size
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({cut(str(error))}); {AGAIN}"
        ) from error
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[8:start].tobytes())
    header.pop("__metadata__", None)
    if not header:
        raise UserError(f"{path} holds no tensors; {AGAIN}")
    tensors, widened = {}, []
    for name, about in header.items():
        if about["dtype"] not in TYPES:
            raise UserError(
                f"{path}: the tensor {name!r} is {about['dtype']}; use a checkpoint of float32, "
                "float16 or bfloat16"
            )
        first, end = (start + x for x in about["data_offsets"])
        array = np.frombuffer(raw[first:end], TYPES[about["dtype"]]).reshape(about["shape"])
        if about["dtype"] in HALF:
            array = _widened(array)
            widened.append(name)
        tensors[name] = array
    return Checkpoint(path, sha256(path), tensors, widened)


def _widened(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32)
