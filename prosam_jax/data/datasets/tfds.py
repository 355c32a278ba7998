"""Reads images and masks of a benchmark from TFDS, where `prosam prepare tfds` puts them.

They are read without TensorFlow, as a data source. A record contains an unchanged image file, the
class numbers as PNG and the id. The dataset's metadata contains the ids of each list and the number
of pixels of each class in each mask, so that folds are made without reading records.
"""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from prosam_jax import images
from prosam_jax.data.folds import FoldRule
from prosam_jax.errors import UserError

VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class TfdsMasks:
    """A benchmark in TFDS, used in place of a `MaskFolder`.

    Attributes:
        path: Folder of the dataset's version.
        rule: The classes of the masks.
        square: Side of the square that images will be resized to, for fast decoding; 0 decodes
            every pixel.
    """

    path: pathlib.Path
    rule: FoldRule
    square: int = 0

    def image(self, image_id: str) -> Image.Image:
        """The image, RGB, not rotated by EXIF data."""
        file, name = self._file(image_id, "image")
        return images.load(file, name, turn=False, square=self.square)

    def labels(self, image_id: str) -> UInt8[np.ndarray, "h w"]:
        """The mask's class numbers, 255 for pixels to ignore."""
        return images.read_labels(*self._file(image_id, "labels"))

    def class_name(self, class_id: int) -> str:
        """Name of class 1, 2, ..."""
        return self.rule.class_names[class_id - 1]

    def ids(self, name: str, setting: str) -> list[str]:
        """The ids in a list.

        Args:
            name: Name of the list, which is also the name of a split of the dataset.
            setting: The setting that gives this name, for messages.

        Raises:
            UserError: There is no such list.
        """
        if name not in self._lists:
            raise UserError(
                f"{setting}={name!r}: {self.path} has the lists {', '.join(self._lists)}; delete "
                f"it and build it again with: prosam prepare tfds --lists {name}"
            )
        return list(self._lists[name]["ids"])

    def pixel_counts(self, ids: Sequence[str]) -> Int[np.ndarray, "n c"]:
        """Number of pixels of background and of each class in each mask, at its original size."""
        counts = {}
        for kept in self._lists.values():
            counts |= dict(zip(kept["ids"], kept["counts"], strict=True))
        return np.array([counts[image_id] for image_id in ids], np.int32)

    def _file(self, image_id: str, part: str) -> tuple[io.BytesIO, str]:
        return io.BytesIO(self._record(image_id)[part]), f"{part} of {image_id} in {self.path}"

    def _record(self, image_id: str) -> dict[str, Any]:
        name, place = self._places[image_id]
        record = self._sources[name][place]
        if record["id"].decode() != image_id:
            raise UserError(
                f"{self.path} is damaged: record {place} of {name} is not {image_id}; delete it "
                "and build it again with: prosam prepare tfds"
            )
        return record

    @functools.cached_property
    def _dataset(self) -> Any:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f"{self.path} is a TFDS dataset, but packages to read it are missing ({error}); "
                "install them with: pip install 'prosam_jax[tfds]'"
            ) from error
        return tfds.builder_from_directory(str(self.path))

    @functools.cached_property
    def _lists(self) -> Mapping[str, Any]:
        return self._dataset.info.metadata["lists"]

    @functools.cached_property
    def _sources(self) -> dict[str, Sequence[Any]]:
        from tensorflow_datasets import decode as tfds_decode

        as_stored = {name: tfds_decode.SkipDecoding() for name in ("image", "labels")}
        return {
            name: self._dataset.as_data_source(name, decoders=as_stored) for name in self._lists
        }

    @functools.cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        return {
            image_id: (name, place)
            for name, kept in self._lists.items()
            for place, image_id in enumerate(kept["ids"])
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return TfdsMasks, (self.path, self.rule, self.square)  # a worker opens its own files


def dataset_path(data_dir: pathlib.Path, rule: FoldRule) -> pathlib.Path:
    """The folder of a benchmark's dataset in a TFDS data directory."""
    return pathlib.Path(os.path.expanduser(data_dir)) / dataset_name(rule) / VERSION


def dataset_name(rule: FoldRule) -> str:
    """The name of a benchmark's dataset in TFDS, such as "pascal5i"."""
    return rule.name.lower().replace("-", "")


def find(root: str, rule: FoldRule) -> TfdsMasks | None:
    """The benchmark if `root` is a TFDS data directory that contains it, else None."""
    path = dataset_path(pathlib.Path(root), rule)
    return TfdsMasks(path, rule) if root and (path / "dataset_info.json").is_file() else None
