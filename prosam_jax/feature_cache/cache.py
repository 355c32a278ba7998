"""A cache in use: embeddings are read from disk, or computed by SAM and then stored."""

import collections
import concurrent.futures
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from prosam_jax.config import CacheConfig
from prosam_jax.feature_cache.entries import Entries, size
from prosam_jax.feature_cache.packing import Packed, pack, unpack
from prosam_jax.sam.build_sam import embed
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files

# Raise this when the results of `embed` or `pack`, or the layout of an entry, change.
_RECIPE = 1


@functools.partial(jax.jit, static_argnums=2)
def _embed(sam, images, dtype):
    return pack(embed(sam, images), dtype)


_unpack = jax.jit(unpack, static_argnums=1)


class FeatureCache:
    """Gives the embeddings of batches of target images.

    Read or computed, an embedding has the numbers of its entry.

    Attributes:
        entries: The files.
        counts: Images "read" and "computed" so far.
    """

    def __init__(
        self, cfg: CacheConfig, sam: Sam, put: Callable[[Any], Any] = jax.device_put
    ) -> None:
        """Opens the cache of this SAM.

        Args:
            cfg: Folder and type.
            sam: The frozen SAM; its image encoder's arrays are hashed.
            put: Puts a batch on the devices.
        """
        arch = sam.cfg
        shape = (1, *arch.embedding_size, arch.prompt_embed_dim)
        like = jax.eval_shape(
            lambda x: pack(x, cfg.dtype), jax.ShapeDtypeStruct(shape, jnp.dtype(arch.dtype))
        )
        facts = {
            "recipe": _RECIPE,
            "encoder_sha256": files.checksum(files.leaves(sam.image_encoder)),
            "sam": dataclasses.asdict(arch),
            "dtype": cfg.dtype,
        }
        self.entries = Entries(pathlib.Path(cfg.dir), facts, like)
        self.counts = collections.Counter(read=0, computed=0)
        self._sam, self._dtype, self._put = sam, cfg.dtype, put
        self._told = False

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Array, "b i j e"]:
        """The embeddings, on the devices, in the type of SAM's activations.

        Reading is the host's work: done while the device is busy with a step, it costs no time. If
        one embedding of the batch is missing, the whole batch is computed, in the one shape that
        is compiled.
        """
        with concurrent.futures.ThreadPoolExecutor() as pool:
            keys = list(pool.map(self.entries.key, images))
            rows = list(pool.map(self.entries.read, keys))
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            fresh = self.compute(images)
            for i in missing:
                rows[i] = fresh[i]
                self._keep(keys[i], fresh[i])
        self.counts.update(read=len(images) - len(missing), computed=len(missing))
        packed = jax.tree.map(lambda *x: np.concatenate(x), *rows)
        return _unpack(self._put(packed), self._sam.cfg.dtype)

    def compute(self, images: UInt8[np.ndarray, "b h w 3"]) -> list[Packed]:
        """What the entry of each image holds, from SAM."""
        batch = jax.device_get(_embed(self._sam, self._put(images), self._dtype))
        return [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(len(images))]

    def _keep(self, key: bytes, row: Packed) -> None:
        # A full disk or a read-only cache is no reason to end a run.
        try:
            self.entries.write(key, row)
        except OSError as error:
            if not self._told:
                print(f"feature cache: going on without new entries: {error}", file=sys.stderr)
            self._told = True

    def announce(self, images: int) -> str:
        """One line about the cache of a run that uses up to `images` images.

        Raises:
            UserError: The disk has no room for the entries that are certainly missing.
        """
        there = self.entries.count()
        self.entries.check_space(max(0, images - there))
        return (
            f"feature cache: {there:,} entries of {size(self.entries.nbytes)} in "
            f"{self.entries.folder}; this run uses up to {images:,}, "
            f"{size(images * self.entries.nbytes)}, and adds the missing ones "
            f"({size(self.entries.free())} free)"
        )

    def summary(self) -> str:
        """One line about what the cache did."""
        damaged = f", {n} damaged and not replaced" if (n := len(self.entries.damaged)) else ""
        return (
            f"feature cache: {self.counts['read']:,} embeddings read, "
            f"{self.counts['computed']:,} computed{damaged}"
        )


def opened(cfg: CacheConfig, sam: Sam, put: Callable[[Any], Any]) -> FeatureCache | None:
    """The cache of a run; None if `cache.dir` is empty."""
    return FeatureCache(cfg, sam, put) if cfg.dir else None
