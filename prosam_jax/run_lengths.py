"""Masks as COCO's run lengths: written as lists and as text, and read back."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """COCO's run lengths by column: background and foreground alternate, background first."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])
    borders = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff(borders, prepend=0, append=mask.size).tolist()


def mask_of(counts: Sequence[int], size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
    """The mask of `run_lengths`, of a size (height, width) that they add up to."""
    height, width = size
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def as_text(counts: Sequence[int]) -> str:
    """COCO's compressed form of `run_lengths`, as `pycocotools` writes and reads it.

    From the fourth on, a count is stored as its difference from the last but one. Numbers are cut
    into five bits, the lowest first; a sixth bit says that more follow, and the fifth bit of the
    last piece is the sign.
    """
    text = []
    for count, before in zip(counts, itertools.chain((0, 0, 0), counts[1:]), strict=False):
        rest = count - before
        more = True
        while more:
            piece, rest = rest & 31, rest >> 5
            more = rest != (-1 if piece & 16 else 0)
            text.append(chr(48 + piece + 32 * more))
    return "".join(text)
