"""Weight files: safetensors whose keys are NNX paths, written atomically and read strictly.

This module does not need torch; `prosam_jax.convert` makes weight files from torch checkpoints.
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
from prosam_jax.config import BACKBONES_ON_HUB, HUB, RANDOM, SAMS_ON_HUB, hub_file, network_name
from prosam_jax.errors import UserError, cut
from prosam_jax.weights import other_forms

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
    """Gives the same key at every call, because counting calls dominates an abstract build."""

    def params(self) -> jax.Array:
        return self.default.key[...]


def abstract(build: Callable[[nnx.Rngs], Module]) -> Module:
    """The module that `build` makes, with shapes and dtypes in place of arrays."""
    return nnx.eval_shape(lambda: build(_OneKey(0)))


def leaves(module: nnx.Module) -> dict[str, Any]:
    """All arrays of a module (shapes and dtypes if it is abstract) by NNX path, joined by "."."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def fill(module: Module, array_of: Callable[[str], ArrayLike]) -> Module:
    """A copy of `module` with the leaf of each name set to `array_of(name)`, one at a time."""
    graph, state = nnx.split(module)
    filled = [
        (path, variable.replace(jnp.array(array_of(".".join(map(str, path))))))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def random(build: Callable[[nnx.Rngs], Module], seed: int) -> Module:
    """A module with random weights: each array is drawn from the seed and its name.

    Kernels are N(0, 1 / n) with n the product of all axes but the last, norms are the identity,
    biases and position tables are 0, and all else is N(0, 1). NumPy draws them, because compiling
    JAX's generator for every shape of a frozen network takes a minute.
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
    """Writes a weight file; the same input makes the same bytes.

    The file appears when it is complete, and a failure leaves nothing behind. The metadata is a
    single JSON text, because safetensors shuffles multiple entries; "arrays_sha256", a checksum of
    the arrays' names, shapes and bytes, is added to it.

    Args:
        path: The file; its folder is created if it is missing, an older file is replaced.
        arrays: float32 arrays by NNX path, such as `leaves` returns.
        metadata: What the file is, as JSON values; `load` needs "kind" and "architecture".

    Raises:
        UserError: An array is not float32.
        OSError: The disk is full, or the folder cannot be written to.
    """
    path = pathlib.Path(path)
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise UserError(f"{name} is {array.dtype}; weight files take only float32: convert it")
    # safetensors copies bytes in memory order, which is wrong for views such as a transpose.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {"format": FORMAT, "arrays_sha256": checksum(contiguous), **metadata}
    text = json.dumps(facts, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as part:
            part.touch()
            mode = part.stat().st_mode
            save_file(contiguous, part, metadata={NAMESPACE: text})
            part.chmod(
                mode
            )  # as for any new file; safetensors would make it readable only by its owner
    except safetensors.SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def checksum(arrays: Mapping[str, np.ndarray | jax.Array]) -> str:
    """SHA-256 of the arrays' names, shapes and bytes, independent of their order."""
    return _checksum(sorted(arrays.items()))


def check_whole(file: Any, path: str | os.PathLike[str], *, made_by: str) -> None:
    """Raises UserError unless an open weight file's arrays are unchanged, float32 and finite."""
    written = read_metadata(file, path).get("arrays_sha256")
    for name in sorted(file.keys()):
        if (held := file.get_slice(name).get_dtype()) != "F32":
            raise UserError(f"{path}: {name} is {held}, not float32; make it again with: {made_by}")
    not_finite = []

    def arrays() -> Iterable[tuple[str, np.ndarray]]:
        for name in sorted(file.keys()):
            array = file.get_tensor(name)
            if array.size and not np.isfinite([array.min(), array.max()]).all():
                not_finite.append(name)
            yield name, array

    found = _checksum(arrays())
    if written not in (None, found):
        raise UserError(
            f"{path} is damaged: the sha256 of its arrays is {found}, but it was written with "
            f"{written}; make it again with: {made_by}"
        )
    if not_finite:  # with these, masks would be empty, and nothing would say why
        raise UserError(
            f"{path}: {not_finite[0]} contains NaN or infinity; make it again with: {made_by}"
        )


def _checksum(arrays: Iterable[tuple[str, np.ndarray | jax.Array]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_metadata(file: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of an open safetensors file; empty if it is not a weight file.

    Raises:
        UserError: It is no JSON object.
    """
    try:
        held = json.loads((file.metadata() or {}).get(NAMESPACE, "{}"))
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise UserError(f"{path} is no weight file: its metadata {NAMESPACE!r} is no JSON object")
    return held


def metadata(path: str | os.PathLike[str], *, made_by: str) -> dict[str, Any]:
    """The metadata of a safetensors file; empty if it is not a weight file.

    Raises:
        UserError: The file is missing, damaged or not a safetensors file.
    """
    with _open(path, made_by) as file:
        return read_metadata(file, path)


def frozen_metadata(
    file: str | os.PathLike[str], *, kind: str, architecture: str
) -> dict[str, Any]:
    """The metadata of the weight file of a frozen network; its arrays are not read.

    Args:
        file: The weight file.
        kind: "sam" or "backbone".
        architecture: Value of `sam.model` or `backbone.name`.

    Raises:
        UserError: The file is missing, damaged, not a weight file, or of another kind or
            architecture.
    """
    command = made_by(kind, architecture, file)
    held = metadata(file, made_by=command)
    _check_metadata(file, held, kind, architecture, command)
    return held


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
        kind: A key of `SETTINGS`.
        architecture: Value of the setting that `SETTINGS` names, for example "vit_h".
        made_by: Command that makes the file, for messages.

    Returns:
        The module, with its arrays on the default device.

    Raises:
        UserError: The file is missing, damaged, not a weight file, or of another kind or
            architecture, or its names, shapes or dtypes do not exactly match the module.
    """
    with _open(path, made_by) as file:
        _check_metadata(path, read_metadata(file, path), kind, architecture, made_by)
        module = abstract(build)
        problems = _misfits(file, leaves(module))
        if problems:
            raise UserError(
                f"{path} does not fit {SETTINGS[kind]}={architecture} ({listing(problems)}); "
                f"make it again with: {made_by}"
            )
        check_whole(file, path, made_by=made_by)
        return fill(module, file.get_tensor)


def frozen(
    build: Callable[[nnx.Rngs], Module], file: str, seed: int, *, kind: str, architecture: str
) -> Module:
    """Builds a frozen network.

    Args:
        build: Makes the module.
        file: The weight file, or "random" for weights drawn from the seed.
        seed: The seed.
        kind: "sam" or "backbone".
        architecture: Value of `sam.model` or `backbone.name`.

    Raises:
        UserError: As for `load`.
    """
    if file == RANDOM:
        return random(build, seed)
    command = made_by(kind, architecture, file)
    return load(build, file, kind=kind, architecture=architecture, made_by=command)


def made_by(kind: str, architecture: str, out: str | os.PathLike[str]) -> str:
    """The command that makes the weight file `out` of a frozen network, for messages."""
    if os.fspath(out) == hub_file(kind, architecture):
        return f"prosam weights get {network_name(kind, architecture)}"
    if architecture == "shapes":
        return (
            f"python packaged/shapes_{kind}.py --out {out} (or use the one that comes with the "
            f"package: --config.{kind}.weights=packaged)"
        )
    if architecture == "tiny":
        return f"--config.{kind}.weights=random, which needs no file"
    on_hub = architecture in (SAMS_ON_HUB if kind == "sam" else BACKBONES_ON_HUB)
    fetched = f"--config.{kind}.weights={HUB}, which fetches it, or with: " if on_hub else ""
    return (
        f"{fetched}prosam weights convert {kind} --model {architecture} --checkpoint CHECKPOINT "
        f"--out {out} (`prosam weights list` shows the checkpoints)"
    )


def listing(problems: Mapping[str, Sequence[str]]) -> str:
    """For each group of problems how many there are, the group and the first few, in one line."""
    told = []
    for group, entries in problems.items():
        more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
        told.append(f"{len(entries)} {group}: {', '.join(map(cut, entries[:SHOWN]))}{more}")
    return "; ".join(told)


def _open(path: str | os.PathLike[str], made_by: str) -> Any:
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path} is missing; make it with: {made_by}")
    try:
        other_forms.check(pathlib.Path(path))
    except UserError as error:
        raise UserError(f"{error}, or make it again with: {made_by}") from error
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({cut(str(error))}); make it again with: "
            f"{made_by}"
        ) from error


def _check_metadata(
    path: str | os.PathLike[str],
    found: Mapping[str, Any],
    kind: str,
    architecture: str,
    made_by: str,
) -> None:
    known = str(found.get("kind")) in SETTINGS and isinstance(found.get("architecture"), str)
    if found.get("format") != FORMAT or not known:
        raise UserError(
            f"{path} is not a weight file of format {FORMAT!r}; make it again with: {made_by}"
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
