"""Copies a benchmark's folder to a TFDS data directory, from which training can read it, too.

The folder must be as `prosam prepare` leaves it. The episodes are bit-identical. It needs `pip
install 'prosam_jax[tfds]'`, but not TensorFlow.
"""

import os
import pathlib
from collections.abc import Sequence

from prosam_jax.data.datasets import coco, pascal
from prosam_jax.data.datasets.tfds import dataset_path
from prosam_jax.errors import UserError

_FOLDERS = {
    "pascal": (pascal.find_folder, pascal.OWN_LISTS),
    "coco": (coco.find_folder, coco.OWN_LISTS),
}


def build(name: str, root: str, data_dir: pathlib.Path, lists: Sequence[str] = ()) -> str:
    """Builds the dataset of "pascal" or "coco", and says where it is.

    Args:
        name: The benchmark.
        root: Its folder.
        data_dir: The TFDS data directory.
        lists: Lists of ids to copy, each to a split of that name; the benchmark's own if empty.

    Returns:
        A line with the dataset's path and size.

    Raises:
        UserError: The folder is not valid, or tensorflow_datasets is not installed.
    """
    find_folder, own_lists = _FOLDERS[name]
    folder = find_folder(root)
    path = dataset_path(data_dir, folder.rule)
    if path.exists():
        return f"{path} exists already; delete it to build it again"
    try:
        from prosam_jax.data.prepare import tfds_builders
    except ImportError as error:
        raise UserError(f"{error}; install it with: pip install 'prosam_jax[tfds]'") from error
    builder = tfds_builders.BUILDERS[name](
        folder=folder,
        lists=lists or own_lists,
        data_dir=os.path.expanduser(data_dir),
        file_format="array_record",
    )
    builder.download_and_prepare()
    splits = ", ".join(f"{x.num_examples:,} in {name}" for name, x in builder.info.splits.items())
    return f"{path}: {splits}, {builder.info.dataset_size:,} bytes"
