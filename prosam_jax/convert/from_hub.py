"""Frozen weights from their publishers' repositories on a hub, converted once, without torch.

The hub's client keeps what it fetches. Beside it, among the client's assets, lies the weight file
that is made of it, `config.hub_file`; every load checks it. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE
mean what they mean to the client.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import filelock
import safetensors
from flax import nnx

from prosam_jax import console
from prosam_jax.atomic import PART, check_place
from prosam_jax.config import hub_file, network_name
from prosam_jax.convert import checkpoint, layouts, weight_file
from prosam_jax.errors import UserError
from prosam_jax.weights import files, hub, registry
from prosam_jax.weights.registry import Published


class Kept(NamedTuple):
    """A weight file in the cache, and whether it was there before."""

    path: pathlib.Path
    was_there: bool


def fetch(
    build: Callable[[nnx.Rngs], Any],
    *,
    kind: str,
    architecture: str,
    check: bool = False,
    source: pathlib.Path | None = None,
) -> Kept:
    """Sees to it that the weight file of a published network is in the cache.

    One that is there is kept, unless it is to be checked and is damaged. Of several processes, one
    fetches and the others wait. A file appears when it is whole, also where a process is killed.
    What the publisher's licence is, is noted when a file is made.

    Args:
        build: Makes the network in its published size.
        kind: "sam" or "backbone".
        architecture: One of `config.SAMS_ON_HUB` or `config.BACKBONES_ON_HUB`.
        check: Whether to check a file that is there.
        source: A file that was fetched by hand, to be converted in place of the hub's.

    Raises:
        UserError: `huggingface_hub` is not installed; the hub cannot be reached, or has not the
            file, or another one; or the cache cannot be written to. The message says what to do.
        OSError: The disk is full.
    """
    path = pathlib.Path(hub_file(kind, architecture))
    if source is None and not check and path.is_file():
        return Kept(path, True)
    entry = registry.on_hub(kind, architecture)
    name = network_name(kind, architecture)
    with _alone(path, name):
        if source is None and path.is_file() and (not check or _is_whole(path, entry)):
            return Kept(path, True)
        try:
            _make(path, build, entry, source)
        except UserError as error:
            if source is not None:
                raise
            raise UserError(
                f"{name}: {error}; to get it by hand, {entry.by_hand}, then: prosam weights get "
                f"{name} --from FILE"
            ) from error
    return Kept(path, False)


@contextlib.contextmanager
def _alone(path: pathlib.Path, name: str) -> Iterator[None]:
    """Waits until no other process makes the file."""
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock's file stays: were it removed, two could hold locks of the same name.
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        console.note(f"another process is fetching {name}; waiting until it ends")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_whole(path: pathlib.Path, entry: Published) -> bool:
    kind, architecture = entry.kind, entry.architecture
    command = files.made_by(kind, architecture, path)
    try:
        files.frozen_metadata(path, kind=kind, architecture=architecture)
        with safetensors.safe_open(path, framework="numpy") as file:
            files.check_whole(file, path, made_by=command)
    except UserError as error:
        console.note(f"made again: {error}")
        return False
    return True


def _make(
    path: pathlib.Path,
    build: Callable[[nnx.Rngs], Any],
    entry: Published,
    source: pathlib.Path | None,
) -> None:
    name = ""
    terms = f"licence {entry.licence}, {entry.publisher}{'; ' if entry.note else ''}{entry.note}"
    if source is None and entry.hub:
        repository, file = entry.hub
        name = f"{repository}/{file}"
        console.note(f"fetching {file} of {repository}: {terms}")
        source = hub.download(repository, file)
        try:
            registry.verify(entry, source)
        except UserError as error:
            raise UserError(f"{repository} has a wrong {file}: {error}") from error
    elif source is not None:
        console.note(f"converting {source}: {terms}")
    assert source is not None
    held = checkpoint.read(source)
    table = layouts.table(source, held.tensors, entry.kind, entry.architecture)
    _check_room(path, source.stat().st_size)
    # A folder of its own: what a killed process left there is found and removed.
    part = path.with_name(f".{path.name}{PART}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        weight_file.save(
            held,
            part / path.name,
            kind=entry.kind,
            architecture=entry.architecture,
            build=build,
            rules=table.rules,
            ignored=table.ignored,
            source_name=name,
        )
        (part / path.name).replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    console.note(f"{path}: {path.stat().st_size:,} bytes")


def _check_room(path: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"{path} needs {needed:,} bytes, but {path.parent} has {free:,} free; make room, or "
            "set HF_HOME to another folder"
        )
