"""Random numbers from the raw bits of PCG64, a stream that NumPy guarantees not to change.

NumPy gives no such guarantee for the methods of `np.random.Generator`.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

_T = TypeVar("_T")


class Rng:
    """A stream of random numbers that depends only on its key."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (self._bits.random_raw() >> 11) / 2**53

    def normal(self) -> float:
        """A number from N(0, 1), by the Box-Muller transform."""
        length = math.sqrt(-2 * math.log(1 - self.uniform(0, 1)))
        return length * math.cos(self.uniform(0, 2 * math.pi))

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return self._bits.random_raw() * n >> 64

    def choose(self, items: Sequence[_T]) -> _T:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[_T], n: int) -> list[_T]:
        """`n` different items in random order."""
        order = np.argsort(self._bits.random_raw(len(items)), kind="stable")
        return [items[i] for i in order[:n]]

    def subset(self, size: int, n: int) -> list[int]:
        """`n` different integers from 0 to size - 1, ascending, in `n` draws (Floyd's method)."""
        chosen: set[int] = set()
        for last in range(size - n, size):
            number = self.below(last + 1)
            chosen.add(last if number in chosen else number)
        return sorted(chosen)

    def noise(self, *shape: int) -> UInt8[np.ndarray, "..."]:
        """Uniform random bytes of a shape."""
        n = math.prod(shape)
        return self._bits.random_raw(n // 8 + 1).astype("<u8").view(np.uint8)[:n].reshape(shape)
