"""Weight files: safetensors whose keys are NNX paths, written atomically and read strictly.

torch is not needed here; `prosam_jax.convert` makes such files from torch's.
"""

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from jax.typing import ArrayLike
from safetensors.numpy import save_file

from prosam_jax.atomic import replacing
from prosam_jax.config import RANDOM
from prosam_jax.errors import UserError

FORMAT = "prosam_jax 1"
NAMESPACE = "prosam_jax"
SETTINGS = {
    "sam": "sam.model",
    "backbone": "backbone.name",
    "prompt_encoder": "distribution.name",
}
SHOWN = 8

Module = TypeVar("Module", bound=nnx.Module)


class _OneKey(nnx.Rngs):
    """The same key at every call. Counting calls takes most of the time of an abstract build."""

    def params(self) -> jax.Array:
        return self.default.key[...]


def abstract(build: Callable[[nnx.Rngs], Module]) -> Module:
    """The module that `build` makes, with shapes and types in place of arrays."""
    return nnx.eval_shape(lambda: build(_OneKey(0)))


def leaves(module: nnx.Module) -> dict[str, Any]:
    """Every array (of an abstract module: shape and type) by its NNX path, joined with "."."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def fill(module: Module, array_of: Callable[[str], ArrayLike]) -> Module:
    """A copy of `module` whose leaf of each name is `array_of(name)`, one at a time."""
    graph, state = nnx.split(module)
    filled = [
        (path, variable.replace(jnp.array(array_of(".".join(map(str, path))))))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def random(build: Callable[[nnx.Rngs], Module], seed: int) -> Module:
    """A module with stand-ins for weights that nobody has: each array drawn by its name.

    Kernels are N(0, 1 / n) with n the product of all axes but the last, norms the identity,
    biases and position tables 0, all else N(0, 1). NumPy draws them: compiling JAX's generator
    for every shape of a frozen network takes a minute. Same seed, same numbers.
    """
    module = abstract(build)
    specs = leaves(module)

    def draw(name: str) -> np.ndarray:
        shape = specs[name].shape
        leaf = name.rpartition(".")[2]
        if leaf in ("scale", "weight", "gamma", "running_var"):
            return np.ones(shape, np.float32)
        if leaf in ("bias", "running_mean", "pos_embed", "rel_pos_h", "rel_pos_w"):
            return np.zeros(shape, np.float32)
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        gain = np.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 1.0
        return generator.standard_normal(shape, np.float32) * np.float32(gain)

    return fill(module, draw)


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray | jax.Array],
    metadata: Mapping[str, Any],
) -> None:
    """Writes a weight file; equal input makes equal bytes.

    The file appears under its name when it is complete, and a failure leaves nothing behind. The
    metadata is one JSON text, because safetensors shuffles several entries; a checksum of the
    arrays' names and bytes joins it as "arrays_sha256".

    Args:
        path: The file; its folder is made if it is missing, an older file is replaced.
        arrays: float32 arrays by NNX path, such as `leaves` gives.
        metadata: What the file is, values that JSON knows; `load` wants "kind" and
            "architecture".

    Raises:
        UserError: An array is not of type float32.
        OSError: The disk is full, or the folder cannot be written.
    """
    path = pathlib.Path(path)
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise UserError(f"{name} has type {array.dtype}; weight files hold float32 only")
    # safetensors takes the bytes as they lie in memory, which those of a transposed view do not.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {"format": FORMAT, "arrays_sha256": checksum(contiguous), **metadata}
    text = json.dumps(facts, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as part:
            part.touch()
            mode = part.stat().st_mode
            save_file(contiguous, part, metadata={NAMESPACE: text})
            part.chmod(mode)  # as for any new file: safetensors makes them the owner's alone
    except safetensors.SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def checksum(arrays: Mapping[str, np.ndarray | jax.Array]) -> str:
    """SHA-256 of the arrays' names, shapes and bytes, whatever their order."""
    return _checksum(sorted(arrays.items()))


def check_whole(file: Any, path: str | os.PathLike[str], *, made_by: str) -> None:
    """Raises UserError unless an open weight file holds the numbers that were written to it."""
    written = read_metadata(file).get("arrays_sha256")
    found = _checksum((name, file.get_tensor(name)) for name in sorted(file.keys()))
    if written not in (None, found):
        raise UserError(
            f"{path} is damaged: the sha256 of its arrays is {found}, it was written with "
            f"{written}; make it again with: {made_by}"
        )


def _checksum(arrays: Iterable[tuple[str, np.ndarray | jax.Array]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_metadata(file: Any) -> dict[str, Any]:
    """The metadata of an open weight file, empty if it is some other file."""
    return json.loads((file.metadata() or {}).get(NAMESPACE, "{}"))


def metadata(path: str | os.PathLike[str], *, made_by: str) -> dict[str, Any]:
    """The metadata of a weight file, as `read_metadata`; errors as those of `load`."""
    with _open(path, made_by) as file:
        return read_metadata(file)


def load(
    build: Callable[[nnx.Rngs], Module],
    path: str | os.PathLike[str],
    *,
    kind: str,
    architecture: str,
    made_by: str,
) -> Module:
    """Builds a module from a weight file, without drawing initial values.

    Args:
        build: Makes the module, for example `lambda rngs: Sam(cfg, rngs=rngs)`.
        path: The weight file.
        kind: One of the keys of `SETTINGS`.
        architecture: Value of that kind's setting, for example "vit_h".
        made_by: Command that makes the file, for the messages.

    Returns:
        The module, its arrays on the default device.

    Raises:
        UserError: The file is missing, damaged, no weight file, or of another kind or
            architecture, or its names, shapes or types are not exactly those of the module.
    """
    with _open(path, made_by) as file:
        _check_metadata(path, read_metadata(file), kind, architecture, made_by)
        module = abstract(build)
        problems = _misfits(file, leaves(module))
        if problems:
            raise UserError(
                f"{path} does not fit {SETTINGS[kind]}={architecture}:\n{listing(problems)}\n"
                f"make it again with: {made_by}"
            )
        check_whole(file, path, made_by=made_by)
        return fill(module, file.get_tensor)


def frozen(
    build: Callable[[nnx.Rngs], Module], file: str, seed: int, *, kind: str, architecture: str
) -> Module:
    """A frozen network as the settings name its weights: of a file, or "random" from a seed.

    Raises:
        UserError: As `load`.
    """
    if file == RANDOM:
        return random(build, seed)
    command = made_by(kind, architecture, file)
    return load(build, file, kind=kind, architecture=architecture, made_by=command)


def made_by(kind: str, architecture: str, out: str | os.PathLike[str]) -> str:
    """The command that makes the weight file `out` of a frozen network, for messages."""
    if architecture == "shapes":
        return (
            f"python packaged/shapes_{kind}.py --out {out} (--config.{kind}.weights=packaged "
            "takes the one that comes with the package)"
        )
    if architecture == "tiny":
        return f"--config.{kind}.weights=random, which needs no file"
    return (
        f"prosam weights convert {kind} --model {architecture} --checkpoint CHECKPOINT "
        f"--out {out} (`prosam weights list` knows the checkpoints)"
    )


def listing(problems: Mapping[str, Sequence[str]]) -> str:
    """One line for each group of problems: their number, its name and the first few."""
    lines = []
    for group, entries in problems.items():
        more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
        lines.append(f"  {len(entries)} {group}: {', '.join(entries[:SHOWN])}{more}")
    return "\n".join(lines)


def _open(path: str | os.PathLike[str], made_by: str) -> Any:
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path} is missing; make it with: {made_by}")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no complete safetensors file ({error}); make it again with: {made_by}"
        ) from error


def _check_metadata(
    path: str | os.PathLike[str],
    found: Mapping[str, Any],
    kind: str,
    architecture: str,
    made_by: str,
) -> None:
    if found.get("format") != FORMAT or found.get("kind") not in SETTINGS:
        raise UserError(
            f"{path} is no weight file of format {FORMAT!r}; make it again with: {made_by}"
        )
    held = f"{SETTINGS[found['kind']]}={found.get('architecture')}"
    wanted = f"{SETTINGS[kind]}={architecture}"
    if held != wanted:
        mend = f"set {held} or make" if found["kind"] == kind else "make"
        raise UserError(
            f"{path} holds weights for {held}, not for {wanted}; {mend} the right file with: "
            f"{made_by}"
        )


def _misfits(file: Any, specs: Mapping[str, Any]) -> dict[str, list[str]]:
    names = set(file.keys())
    problems = {
        "missing": [name for name in specs if name not in names],
        "unexpected": sorted(names - specs.keys()),
        "of another shape": [],
        "of another type": [],
    }
    for name in sorted(specs.keys() & names):
        held, spec = file.get_slice(name), specs[name]
        if tuple(held.get_shape()) != spec.shape:
            problems["of another shape"].append(
                f"{name} is {tuple(held.get_shape())}, not {spec.shape}"
            )
        if held.get_dtype() != "F32" or spec.dtype != jnp.float32:
            problems["of another type"].append(f"{name} is {held.get_dtype()}, not {spec.dtype}")
    return {group: entries for group, entries in problems.items() if entries}
