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
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of bytes that are no text, too
        raise UserError(f"{path} is damaged ({error}); {mend}") from error
    except RecursionError:
        raise UserError(f"{path} is damaged (nested too deeply); {mend}") from None
    if not isinstance(held, dict):
        raise UserError(f"{path} is damaged (a {type(held).__name__}, no object); {mend}")
    if missing := sorted(set(needed) - held.keys()):
        raise UserError(f"{path} is damaged (it has no {', '.join(missing)}); {mend}")
    return held


def write_object(path: pathlib.Path, held: Mapping[str, Any]) -> None:
    """Writes an object whole or not at all, indented.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(held, indent=2) + "\n")
