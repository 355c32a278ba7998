"""JSON files of runs, which older versions, full disks and editors have written as well."""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from prosam_jax.atomic import replacing
from prosam_jax.errors import UserError


def read_object(path: pathlib.Path, needed: Collection[str], mend: str) -> dict[str, Any]:
    """The object that a file holds, by name.

    Args:
        path: The file.
        needed: Names that it must have.
        mend: What is to be done if it is damaged, the end of the message.

    Raises:
        UserError: It is no JSON, no object, or lacks a name.
        OSError: It cannot be read.
    """
    try:
        return _with(needed, path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {mend}") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """The object in a file's bytes, by name; a ValueError names the line that is wrong."""
    try:
        held = json.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte {data[error.start]:#04x} is no text") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(held, dict):
        raise ValueError(f"a {type(held).__name__}, no object")
    return held


def read_lines(path: pathlib.Path, needed: Collection[str], mend: str) -> list[dict[str, Any]]:
    """The objects in a file with one on each line; a last line without an end is left out.

    Args:
        path: The file.
        needed: Names that each must have.
        mend: What is to be done if a line is damaged, the end of the message.

    Raises:
        UserError: A line is no JSON, no object, or lacks a name.
        OSError: It cannot be read.
    """
    found = []
    for i, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(_with(needed, line))
        except ValueError as error:
            told = str(error).removeprefix("line 1: ")
            raise UserError(f"{path}, line {i} is damaged ({told}); {mend}") from error
    return found


def _with(needed: Collection[str], data: bytes) -> dict[str, Any]:
    """The object in some bytes; ValueError if it is none or lacks a name."""
    held = parse_object(data)
    if missing := sorted(set(needed) - held.keys()):
        raise ValueError(f"it has no {', '.join(missing)}")
    return held


def write_object(path: pathlib.Path, held: Mapping[str, Any]) -> None:
    """Writes an object whole or not at all, indented.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(held, indent=2) + "\n")
