import dataclasses
import hashlib
import json
import os
import zipfile

import fake_archives
import numpy as np
import pytest
from conftest import assert_lines, told
from PIL import Image

from prosam_jax import cli
from prosam_jax.config import DataConfig
from prosam_jax.data import datasets
from prosam_jax.data.datasets.coco import coco_folder, find_folder
from prosam_jax.data.episodes import draw_by_class
from prosam_jax.data.folds import COCO_20I
from prosam_jax.data.prepare import coco as prepare_coco
from prosam_jax.data.prepare.coco_masks import Annotated, Object, paint, read_annotations
from prosam_jax.errors import UserError

pytest.importorskip("pycocotools")

HEIGHT, WIDTH = fake_archives.SIZE
ALL = [0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]  # 3,072 pixels


def _box(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _runs(mask):
    """Run lengths of a mask, column by column, as crowds have them."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], ends])).tolist()}


def test_later_objects_cover_earlier_ones_and_crowds_lie_below():
    crowd = np.zeros((9, 11), np.uint8)
    crowd[:, 3:] = 1
    objects = [
        Object(7, False, [_box(1, 1, 4, 4)]),
        Object(80, False, [_box(4, 2, 4, 6), _box(0, 8, 2, 1)]),
        Object(1, True, _runs(crowd)),
    ]
    expected = np.where(crowd, 255, 0)
    expected[1:5, 1:5] = 7
    expected[2:8, 4:8] = expected[8, 0:2] = 80
    np.testing.assert_array_equal(paint(objects, 9, 11), expected)
    expected[1:5, 1:5] = 7
    np.testing.assert_array_equal(paint(objects[1::-1], 9, 11)[1:5, 1:5], 7)
    assert not paint([], 9, 11).any()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Archives of three images for training and two for testing, which a server serves."""
    site = tmp_path / "site"
    site.mkdir()
    whole = (5, 0, [ALL])  # class 5, airplane, is novel in fold 0, as is 1; 2 is so in fold 1
    train = [[(2, 0, [ALL])], [(2, 0, [ALL]), (1, 0, [_box(0, 0, 1, 1)])], [(2, 0, [ALL])]]
    fake_archives.write_coco(site, {"train2014": train, "val2014": [[whole], [whole]]})
    with fake_archives.serving(site) as (address, asked):
        small = [
            _small(x, site, address)
            for x in (prepare_coco.ANNOTATIONS, *prepare_coco.IMAGES.values())
        ]
        monkeypatch.setattr(prepare_coco, "ANNOTATIONS", small[0])
        images = dict(zip(prepare_coco.IMAGES, small[1:], strict=True))
        monkeypatch.setattr(prepare_coco, "IMAGES", images)
        yield site, asked


def _small(archive, site, address):
    content = (site / archive.file).read_bytes()
    return dataclasses.replace(
        archive,
        url=f"{address}/{archive.file}",
        size=len(content),
        unpacked=0,
        content=10 * len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _main(capsys, root, *flags):
    status = cli.main(["prepare", "coco", "--root", str(root), *flags])
    return status, *capsys.readouterr()


def test_coco_is_made_of_downloads_once_and_repaired(tmp_path, capsys, site):
    root = tmp_path / "new"
    status, out, _ = _main(capsys, root, "--download")
    assert status == 0
    assert sorted(site[1]) == ["/annotations_trainval2014.zip", "/train2014.zip", "/val2014.zip"]
    lines = out.splitlines()
    assert_lines(lines[0], (root, "3 in train2014", "2 in val2014"))
    assert_lines(lines[1], ("COCO-20i fold 0", "train 2 images", "21,917"))
    assert_lines(lines[-1], (f"prosam train --config coco --config.data.root={root}",))
    assert not (root / "annotations/captions_val2014.json").exists()
    for path in (*root.glob("*.zip"), *(root / "annotations").glob("*.json")):
        path.unlink()
    status, again, _ = _main(capsys, root)
    nothing, *rest = again.splitlines()
    assert (status, rest) == (0, lines) and "nothing to do" in nothing
    folder = find_folder(str(root))
    mask = folder.mask_path(folder.ids("val2014", "")[1])
    image = folder.image_path(folder.ids("train2014", "")[2])
    mask.unlink()
    image.unlink()
    status, _, error = _main(capsys, root)
    assert status == 1
    told(error, "--download", root)
    assert "train2014.zip" not in error
    status, repaired, _ = _main(capsys, root, "--download")
    assert (status, repaired.splitlines()) == (0, lines)
    assert mask.exists() and image.exists()


def test_masks_that_are_there_are_kept(capsys, monkeypatch, site):
    monkeypatch.setattr(prepare_coco, "MASKS_PER_WORKER", 1)  # two processes for the other masks
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    root = site[0]
    kept = root / "annotations/val2014" / f"{fake_archives.coco_name('val2014', 1)}.png"
    kept.parent.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT), 9).save(kept)
    assert _main(capsys, root)[0] == 0
    assert (find_folder(str(root)).labels("val2014/COCO_val2014_000000000001") == 9).all()


def test_episodes_of_both_splits(capsys, site):
    root = site[0]
    assert _main(capsys, root)[0] == 0
    cfg = DataConfig(name="coco", root=str(root), image_size=32)
    train = datasets.episodes(cfg, "train", seed=3)
    assert (train.draw, train.fold.filled) == (draw_by_class, (2,))
    assert train.fold.images == tuple(f"train2014/COCO_train2014_{n:012d}" for n in (0, 2))
    test = datasets.episodes(cfg, "test", seed=3, length=7)
    assert (len(test), test.fold.filled, test[6].class_id) == (7, (5,), 5)
    assert test[6].target_mask.all() and test[6].reference_image.shape == (1, 32, 32, 3)
    with pytest.raises(UserError) as error:
        datasets.episodes(dataclasses.replace(cfg, val_list="val"), "test", seed=3)
    told(error, "data.val_list='val'", "val.txt", "prosam prepare")


def test_files_that_are_not_cocos_are_named(tmp_path, capsys, site):
    file = tmp_path / "instances_val2014.json"
    held = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
    for content in (json.dumps(held), json.dumps(held)[:-9], "[]"):
        file.write_text(content)
        with pytest.raises(UserError) as error:
            read_annotations(file)
        told(error, "instances_val2014.json", "damaged")
    zipped = site[0] / "val2014.zip"
    zipped.write_bytes(zipped.read_bytes()[:-50])
    status, _, error = _main(capsys, site[0])
    assert status == 1
    told(error, zipped, "damaged")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"height": 2.5}, "height 2.5"),
        ({"height": True}, "height True"),
        ({"width": "64"}, "width '64'"),
        ({"width": 0}, "width 0"),
        ({"width": 10**12}, "width 1000000000000"),
        ({"file_name": "a b.jpg"}, "a b.jpg"),
        ({"file_name": "a.png"}, "a.png"),
        ({"file_name": 7}, "TypeError"),
        ({"id": 7}, "image 0"),
    ],
    ids=str,
)
def test_a_damaged_image_of_an_annotation_file_is_named(tmp_path, site, changes, word):
    with zipfile.ZipFile(site[0] / "annotations_trainval2014.zip") as archive:
        held = json.loads(archive.read("annotations/instances_val2014.json"))
    file = tmp_path / "instances_val2014.json"
    file.write_text(json.dumps(held))
    assert [x.file_name[-5:] for x in read_annotations(file)] == ["0.jpg", "1.jpg"]
    held["images"][1] |= changes
    file.write_text(json.dumps(held))
    with pytest.raises(UserError) as error:
        read_annotations(file)
    told(error, file, word, "unpack it again")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b'{"images": 1}'])
def test_what_is_no_annotation_file_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_annotations(tmp_path / "x.json")
    told(error, tmp_path / "x.json", "unpack it again")


def test_an_image_listed_twice_is_named(tmp_path, site):
    with zipfile.ZipFile(site[0] / "annotations_trainval2014.zip") as archive:
        held = json.loads(archive.read("annotations/instances_val2014.json"))
    held["images"][1]["file_name"] = held["images"][0]["file_name"]
    (tmp_path / "x.json").write_text(json.dumps(held))
    with pytest.raises(UserError) as error:
        read_annotations(tmp_path / "x.json")
    told(error, held["images"][0]["file_name"], "twice")


class _Fatal:
    """Ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_process_that_is_killed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_coco, "MASKS_PER_WORKER", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    images = [Annotated(f"{i}.jpg", 2, 2, [_Fatal()]) for i in range(2)]
    with pytest.raises(UserError) as error:
        prepare_coco._write_masks(coco_folder(tmp_path), "val2014", images)
    told(error, "masks of val2014", "killed", "same command again")
    assert not list(tmp_path.rglob("*.*"))


def test_real_annotations_give_the_known_lists(outside_data):
    """What the rule finds in real pictures; of 88 pairs, six objects are covered by others."""
    images = read_annotations(outside_data / "data/COCO2014/annotations/instances_val2014.json")
    ids = [image.file_name for image in images]
    masks = [paint(x.objects, x.height, x.width) for x in images]
    counts = np.array([np.bincount(mask.ravel(), minlength=81)[:81] for mask in masks])
    indices = [COCO_20I.index(ids, counts, fold, "test") for fold in range(4)]
    assert [len(index.images) for index in indices] == [28, 14, 8, 11]
    found = {(c, i) for index in indices for c, of in index.entries.items() for i in of}
    alone = {(c, x.file_name) for x in images for c in _large_alone(x)}
    assert (len(found), len(alone), len(alone - found)) == (82, 88, 6)
    assert found < alone


def _large_alone(image: Annotated):
    for c in {x.class_id for x in image.objects}:
        of_class = [x for x in image.objects if x.class_id == c]
        if (paint(of_class, image.height, image.width) == c).sum() >= 2048:
            yield c
