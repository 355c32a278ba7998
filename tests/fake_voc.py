"""A tiny VOC folder with objects large enough to count."""

import pathlib

import numpy as np
from PIL import Image

LISTS = ("train_aug", "val")
OBJECT = (52, 50)  # with a rim of 2 pixels labelled 255, so 48 x 46 = 2208 pixels count
COLOURS = np.random.default_rng(20).integers(60, 256, (21, 3))


def write_voc(root, classes=(1, 6, 7, 11), images_per_class=3, size=(90, 120), lists=LISTS):
    """Writes `images_per_class` images of each class for each list; returns the folder's path.

    An image is dark noise with one flat rectangle of its class; the last image of a class also
    shows the next class of `classes`. `size` is (height, width), at least (56, 104).
    """
    root = pathlib.Path(root)
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    number = 0
    for name in lists:
        ids = []
        for at, class_id in enumerate(classes):
            for k in range(images_per_class):
                number += 1
                shown = [class_id]
                if k == images_per_class - 1 and len(classes) > 1:
                    shown.append(classes[(at + 1) % len(classes)])
                ids.append(f"2007_{number:06d}")
                image, labels = _draw(np.random.default_rng(number), shown, size)
                write_pair(root, ids[-1], image, labels, mode="PL"[number % 2])
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(ids) + "\n")
    return root


def write_pair(root, image_id, image, labels, mode="L"):
    """Writes an image and its mask; mode "P" gives the mask a palette, as VOC's have."""
    Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
    mask = Image.fromarray(labels)
    if mode == "P":
        mask.putpalette(bytes(768))
    mask.save(root / "SegmentationClassAug" / f"{image_id}.png")


def _draw(rng, shown, size):
    height, width = size
    image = rng.integers(0, 50, (height, width, 3)).astype(np.uint8)
    labels = np.zeros(size, np.uint8)
    half = width // 2
    for side, class_id in enumerate(shown):
        top = rng.integers(0, height - OBJECT[0] + 1)
        left = side * half + rng.integers(0, half - OBJECT[1] + 1)
        outer = np.s_[top : top + OBJECT[0], left : left + OBJECT[1]]
        inner = np.s_[top + 2 : top + OBJECT[0] - 2, left + 2 : left + OBJECT[1] - 2]
        image[outer] = COLOURS[class_id]
        labels[outer] = 255
        labels[inner] = class_id
    return image, labels
