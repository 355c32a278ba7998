"""Shared by the converters: writes a checkpoint's tensors to a weight file, and reports."""

import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

import prosam_jax
from prosam_jax.atomic import check_file
from prosam_jax.convert import engine
from prosam_jax.convert.checkpoint import Checkpoint
from prosam_jax.errors import UserError
from prosam_jax.weights import files
from prosam_jax.weights.registry import sha256


def write(
    checkpoint: Checkpoint,
    out: pathlib.Path,
    *,
    kind: str,
    architecture: str,
    build: Callable[[nnx.Rngs], nnx.Module],
    rules: Sequence[engine.Rule],
    ignored: Sequence[engine.Ignored] = (),
    facts: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Converts a checkpoint to the weight file `out` of the module that `build` makes.

    Prints what was read, ignored and written. The metadata says where the numbers come from, and
    holds `facts`.

    Raises:
        UserError: The checkpoint does not fit the module, or `out` is the checkpoint itself.
        OSError: `out` cannot be written.
    """
    path, digest, tensors, widened = checkpoint
    if out.resolve() == path.resolve():
        raise UserError(f"--out {out} is the checkpoint itself; name another file")
    check_file(out)
    replaces = out.exists()
    parameters, arrays = save(
        checkpoint,
        out,
        kind=kind,
        architecture=architecture,
        build=build,
        rules=rules,
        ignored=ignored,
        facts=facts,
    )

    print(f"read {path}, sha256 {digest}")
    for entry in ignored:
        count = sum(bool(re.fullmatch(entry.pattern, name)) for name in tensors)
        if count:
            print(f"ignored {count} tensors {entry.pattern}: {entry.reason}")
    if widened:
        print(f"widened {len(widened)} half-precision tensors to float32")
    print(f"converted {arrays} arrays, {parameters:,} parameters")
    print(
        f"{'replaced' if replaces else 'wrote'} {out}, {out.stat().st_size:,} bytes, "
        f"sha256 {sha256(out)}"
    )


def save(
    checkpoint: Checkpoint,
    out: pathlib.Path,
    *,
    kind: str,
    architecture: str,
    build: Callable[[nnx.Rngs], nnx.Module],
    rules: Sequence[engine.Rule],
    ignored: Sequence[engine.Ignored] = (),
    facts: Mapping[str, Any] = types.MappingProxyType({}),
    source_name: str = "",
) -> tuple[int, int]:
    """`write` without a word.

    Args:
        checkpoint: As for `write`, like the others.
        out: The file.
        kind: A key of `weights.files.SETTINGS`.
        architecture: Value of that kind's setting.
        build: Makes the module.
        rules: For `engine.convert`.
        ignored: For `engine.convert`.
        facts: More metadata.
        source_name: What the metadata calls the checkpoint; "" for the name of its file.

    Returns:
        How many parameters and arrays were written.

    Raises:
        UserError: The checkpoint does not fit the module.
        OSError: `out` cannot be written.
    """
    specs = files.leaves(files.abstract(build))
    try:
        arrays = engine.convert(checkpoint.tensors, rules, ignored, specs)
    except UserError as error:
        raise UserError(
            f"{checkpoint.path} as {files.SETTINGS[kind]}={architecture}: {error}"
        ) from error
    metadata = {
        **facts,
        "kind": kind,
        "architecture": architecture,
        "source_name": source_name or checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "converter_version": prosam_jax.__version__,
    }
    files.save(out, arrays, metadata)
    return sum(array.size for array in arrays.values()), len(arrays)
