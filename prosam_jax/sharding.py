"""Placement of arrays: the batch is split over the devices, everything else is on each of them."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def make_mesh(batch_size: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over as many of the devices (None for all) as divide the batch evenly."""
    devices = devices or jax.devices()
    n = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:n])


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: Tree, mesh: Mesh) -> Tree:
    """Puts an equal part of each array's first axis on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))
