"""Shared by the converters: writes a checkpoint's tensors to a weight file, and reports."""

import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

import prosam_jax
from prosam_jax.atomic import check_file
from prosam_jax.convert import engine, torch_files
from prosam_jax.errors import UserError
from prosam_jax.weights import files


def write(
    checkpoint: torch_files.Checkpoint,
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
    path, sha256, tensors, widened = checkpoint
    if out.resolve() == path.resolve():
        raise UserError(f"--out {out} is the checkpoint itself; name another file")
    check_file(out)
    specs = files.leaves(files.abstract(build))
    try:
        arrays = engine.convert(tensors, rules, ignored, specs)
    except UserError as error:
        raise UserError(f"{path} as {files.SETTINGS[kind]}={architecture}: {error}") from error
    replaces = out.exists()
    metadata = {
        **facts,
        "kind": kind,
        "architecture": architecture,
        "source_name": path.name,
        "source_sha256": sha256,
        "converter_version": prosam_jax.__version__,
    }
    files.save(out, arrays, metadata)

    print(f"read {path}, sha256 {sha256}")
    for entry in ignored:
        count = sum(bool(re.fullmatch(entry.pattern, name)) for name in tensors)
        if count:
            print(f"ignored {count} tensors {entry.pattern}: {entry.reason}")
    if widened:
        print(f"widened {len(widened)} half-precision tensors to float32")
    parameters = sum(array.size for array in arrays.values())
    print(f"converted {len(arrays)} arrays, {parameters:,} parameters")
    print(
        f"{'replaced' if replaces else 'wrote'} {out}, {out.stat().st_size:,} bytes, "
        f"sha256 {torch_files.sha256(out)}"
    )
