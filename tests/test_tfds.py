import dataclasses
import pickle
import sys

import numpy as np
import pytest
from conftest import told
from fake_voc import write_voc
from PIL import Image

from prosam_jax import cli
from prosam_jax.config import DataConfig
from prosam_jax.data import datasets
from prosam_jax.data.prepare import tfds
from prosam_jax.errors import UserError

pytest.importorskip("tensorflow_datasets")


SIZE = 132, 160  # four times the episodes' size, so that fast decoding is another one


def _write_voc(root):
    return write_voc(root, size=SIZE)


def _write_coco(root):
    """Four images in each list that show class 2 or 3, the last one grey."""
    (root / "annotations").mkdir(parents=True)
    for pool in ("train2014", "val2014"):
        ids = [f"{pool}/COCO_{pool}_{number:012d}" for number in range(4)]
        (root / pool).mkdir()
        (root / "annotations" / pool).mkdir()
        for number, image_id in enumerate(ids):
            rng = np.random.default_rng(number)
            shape = SIZE if number == 3 else (*SIZE, 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{image_id}.jpg")
            labels = np.full(SIZE, 2 + number // 2, np.uint8)
            labels[:9] = 255
            Image.fromarray(labels).save(root / "annotations" / f"{image_id}.png")
        (root / "annotations" / f"{pool}.txt").write_text("\n".join(ids))
    return root


@pytest.mark.parametrize(
    "name, write, splits",
    [
        ("pascal", _write_voc, "12 in train_aug, 12 in val"),
        ("coco", _write_coco, "4 in train2014, 4 in val2014"),
    ],
)
def test_episodes_are_those_of_the_folder(tmp_path, capsys, name, write, splits):
    root = write(tmp_path / "folder")
    command = ["prepare", "tfds", name, "--root", str(root), "--data-dir", str(tmp_path / "tfds")]
    for word in (splits, "already"):
        assert cli.main(command) == 0
        assert word in capsys.readouterr().out
    folder = DataConfig(name=name, root=str(root), fold=1, image_size=33)
    copied = dataclasses.replace(folder, root=str(tmp_path / "tfds"))
    for split, decode in (("train", "exact"), ("test", "fast")):
        wanted, found = (
            datasets.episodes(dataclasses.replace(cfg, decode=decode), split, seed=4)
            for cfg in (folder, copied)
        )
        assert found.fold == wanted.fold
        assert found.images.class_name(3) == wanted.images.class_name(3)
        found[0]  # its files are open now
        for i in range(len(wanted)):
            for source in (found, pickle.loads(pickle.dumps(found))):
                assert source.spec(i) == wanted.spec(i)
                for x, y in zip(source[i], wanted[i], strict=True):
                    np.testing.assert_array_equal(x, y)
                    assert x.dtype == y.dtype
        assert source.images.square == (33 if decode == "fast" else 0)
    assert "tensorflow" not in sys.modules


def test_wrong_lists_and_folders_are_told_in_one_line(tmp_path, capsys, monkeypatch):
    root = write_voc(tmp_path / "voc")
    tfds.build("pascal", str(root), tmp_path / "tfds", ["val"])
    with pytest.raises(UserError) as error:
        datasets.episodes(DataConfig(root=str(tmp_path / "tfds")), "train", seed=0)
    told(error, "data.train_list='train_aug'", "has the lists val", "prosam prepare tfds")
    command = ["prepare", "tfds", "pascal", "--root", str(root)]
    command += ["--data-dir", str(tmp_path / "other")]
    capsys.readouterr()  # bars of what was built
    assert cli.main([*command, "--lists", "train"]) == 1
    told(capsys.readouterr().err, "--lists='train'")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "prosam_jax.data.prepare.tfds_builders")
    monkeypatch.delattr("prosam_jax.data.prepare.tfds_builders")  # as in a process that just began
    assert cli.main(command) == 1
    told(capsys.readouterr().err, "pip install 'prosam_jax[tfds]'")
    with pytest.raises(UserError) as error:
        datasets.episodes(DataConfig(root=str(tmp_path / "tfds")), "test", seed=0)
    told(error, "pip install", "prosam_jax[tfds]")
