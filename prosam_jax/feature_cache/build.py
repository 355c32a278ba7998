"""Filling a cache before training.

Any number of processes may fill one cache at once. Each goes through the missing images in its own
order and checks again before it computes, so they share the work without communicating.
"""

import collections
import concurrent.futures
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.feature_cache.cache import FeatureCache

_T = TypeVar("_T")
_S = TypeVar("_S")
_AHEAD = 8
_Image = UInt8[np.ndarray, "h w 3"]


def missing(
    cache: FeatureCache,
    source: EpisodeSource,
    ids: Sequence[str],
    on_image: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The ids of images without an intact entry; of equal images only the first.

    Args:
        cache: Where to look; every entry is read and checked.
        source: Reads the pixels.
        ids: Images.
        on_image: Called with the number of images looked at so far.
    """
    first: dict[bytes, str] = {}
    seen = _read_ahead(lambda image_id: _look(cache, source, image_id), ids)
    for i, (image_id, (key, _, there)) in enumerate(zip(ids, seen, strict=True), 1):
        if not there:
            first.setdefault(key, image_id)
        on_image(i)
    return list(first.values())


def build(
    cache: FeatureCache,
    source: EpisodeSource,
    ids: Sequence[str],
    *,
    batch_size: int,
    on_image: Callable[[int], None] = lambda done: None,
) -> int:
    """Computes and stores the embeddings of images that have none.

    If it is stopped, only the batch in progress is lost; the next call goes on.

    Args:
        cache: The cache.
        source: Reads the pixels.
        ids: Images, as `missing` returns them.
        batch_size: Images computed at a time.
        on_image: Called with the number of images done so far, here or by other processes.

    Returns:
        How many this process computed.

    Raises:
        OSError: An entry cannot be written.
    """
    order = random.Random(os.getpid()).sample(list(ids), len(ids))
    batch: list[tuple[bytes, _Image]] = []
    computed = 0
    seen = _read_ahead(lambda image_id: _look(cache, source, image_id), order)
    for i, (key, image, there) in enumerate(seen, 1):
        if not there:
            batch.append((key, image))
        if len(batch) == batch_size or (batch and i == len(order)):
            _compute(cache, batch, batch_size)
            computed += len(batch)
            batch = []
        on_image(i - len(batch))
    return computed


def _look(cache: FeatureCache, source: EpisodeSource, image_id: str) -> tuple[bytes, _Image, bool]:
    image = source.image(image_id)
    key = cache.entries.key(image)
    return key, image, cache.entries.read(key) is not None


def _compute(cache: FeatureCache, batch: Sequence[tuple[bytes, _Image]], batch_size: int) -> None:
    images = [image for _, image in batch]
    images += images[-1:] * (batch_size - len(images))  # one shape, so it compiles once
    rows = cache.compute(np.stack(images))
    for (key, _), row in zip(batch, rows[: len(batch)], strict=True):
        cache.entries.write(key, row)


def _read_ahead(read: Callable[[_T], _S], items: Sequence[_T]) -> Iterator[_S]:
    """`read` of each item in order, while threads read the next ones."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        under_way: collections.deque[concurrent.futures.Future[_S]] = collections.deque()
        try:
            for item in items:
                under_way.append(pool.submit(read, item))
                if len(under_way) > _AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
