"""FSS-1000 in small: all classes and files, most of which are the same picture and mask."""

import os
import pathlib

import numpy as np
from PIL import Image

from prosam_jax.data.datasets.fss import CLASSES

SIZE = (12, 16)
OBJECT = np.s_[2:8, 3:13]
COMMON = ".common"


def mask(level=255):
    gray = np.zeros(SIZE, np.uint8)
    gray[OBJECT] = level
    return Image.fromarray(gray)


def picture(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def write_fss(root, classes=None):
    """Writes the folders of the classes, all by default; returns the folder's path."""
    root = pathlib.Path(root)
    (root / COMMON).mkdir(parents=True)
    picture().save(root / COMMON / "0.jpg")
    mask().save(root / COMMON / "0.png")
    for name in [x for of in CLASSES.values() for x in of] if classes is None else classes:
        (root / name).mkdir()
        for n in range(1, 11):
            for end in ("jpg", "png"):
                os.link(root / COMMON / f"0.{end}", root / name / f"{n}.{end}")
    return root


def replace(path, image):
    """Writes a file anew, because it shares its bytes with others."""
    path.unlink()
    image.save(path)
