"""TFDS builders of the benchmarks, in a module of their own because importing it needs TFDS."""

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from prosam_jax.data.datasets.mask_folder import MaskFolder
from prosam_jax.data.datasets.tfds import VERSION


class _Masks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a dataset from a folder of images and masks; each list of ids becomes a split.

    `prosam_jax.data.datasets.tfds` describes the records and the metadata.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, folder: MaskFolder, lists: Sequence[str], **settings: Any):
        """Takes the folder and the names of its lists; `settings` go to TFDS."""
        self.folder = folder
        self.id_lists = {name: folder.ids(name, "--lists") for name in lists}
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        kept = {
            name: {"ids": ids, "counts": self.folder.pixel_counts(ids).tolist()}
            for name, ids in self.id_lists.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images and masks of {self.folder.rule.name}.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                }
            ),
            metadata=tfds.core.MetadataDict(
                classes=["background", *self.folder.rule.class_names], lists=kept
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {name: self._generate_examples(ids) for name, ids in self.id_lists.items()}

    def _generate_examples(self, ids: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, image_id in enumerate(ids):
            yield (
                number,
                {
                    "id": image_id,
                    "image": self.folder.image_path(image_id),
                    "labels": Image.fromarray(self.folder.labels(image_id)),
                },
            )


class Pascal5i(_Masks):
    """VOC 2012 with SBD's masks."""


class Coco20i(_Masks):
    """COCO 2014 with class masks."""


BUILDERS = {"pascal": Pascal5i, "coco": Coco20i}
