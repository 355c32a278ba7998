"""The bootstrap over pictures and seeds, of all studies that ask trained runs.

Target pictures of a fold are drawn again with repetition, each with all its episodes, and of the
trained seeds as many again (percentiles; Efron 1979). All methods share the draws, so differences
have intervals of their own. Row 0 of every array of draws is the sample itself. Three seeds are
few: an interval from them is too narrow by a factor of up to (3 / 2)^0.5 where seeds matter most.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Shaped


class Drawn(NamedTuple):
    """How often each episode and each seed of a fold counts; row 0 has ones.

    Attributes:
        episodes: Counts of the n episodes.
        seeds: Counts of the s seeds.
    """

    episodes: Integer[np.ndarray, "k n"]
    seeds: Integer[np.ndarray, "k s"]


def draw(
    targets: Shaped[np.ndarray, " n"], seeds: int, draws: int, rng: np.random.Generator
) -> Drawn:
    """The sample and as many draws of pictures and of seeds.

    Args:
        targets: What tells the episodes' target pictures apart.
        seeds: How many seeds there are; 0 if runs are not drawn again, but all count alike.
        draws: How many draws, after the sample itself.
        rng: Draws.
    """

    def again(n: int) -> Integer[np.ndarray, "k n"]:
        if not n:
            return np.ones((1 + draws, 0), np.int64)
        drawn = rng.multinomial(n, np.full(n, 1 / n), draws)
        return np.concatenate([np.ones((1, n), drawn.dtype), drawn])

    _, which = np.unique(targets, return_inverse=True)
    return Drawn(again(int(which.max()) + 1)[:, which], again(seeds))
