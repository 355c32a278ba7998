import shutil

import numpy as np
import pytest
from conftest import told
from fake_voc import write_pair, write_voc
from PIL import Image

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.pascal import find_folder, pascal_episodes, pascal_folder
from prosam_jax.data.episodes import draw_test, draw_train
from prosam_jax.data.folds import PASCAL_5I
from prosam_jax.errors import UserError

PARTS = ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation")


@pytest.fixture
def voc(tmp_path):
    """A folder of 24 images, 12 for each split: 2007_000001 to 2007_000024."""
    return write_voc(tmp_path / "VOC2012")


def _fails(voc, *words, **settings):
    with pytest.raises(UserError) as error:
        pascal_episodes(DataConfig(root=str(voc), **settings), "test", seed=0)
    told(error, *words)


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_folder_is_found_in_its_parents(tmp_path, inside):
    for part in PARTS:
        (tmp_path / inside / part).mkdir(parents=True)
    assert find_folder(str(tmp_path)).path == tmp_path / inside


def test_two_folders_are_ambiguous(tmp_path):
    for inside in ("VOC2012", "VOCdevkit/VOC2012"):
        for part in PARTS:
            (tmp_path / inside / part).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        find_folder(str(tmp_path))
    told(error, tmp_path / "VOC2012", tmp_path / "VOCdevkit/VOC2012")


def test_wrong_roots_are_told_what_is_expected(tmp_path, voc):
    _fails("", "data.root", "--config.data.root=FOLDER", "prosam prepare pascal --root FOLDER")
    nowhere = tmp_path / "nowhere"
    _fails(nowhere, f"prosam prepare pascal --root {nowhere} --download")
    shutil.rmtree(voc / "SegmentationClassAug")
    _fails(voc, voc, "SegmentationClassAug", "prosam prepare pascal --root")


def test_missing_and_empty_lists_are_named(voc):
    _fails(voc, "data.val_list='vla'", "vla.txt", "train_aug, val", val_list="vla")
    (voc / PARTS[2] / "empty.txt").write_text("\n \n")
    _fails(voc, "data.val_list='empty'", "empty.txt", val_list="empty")


def test_missing_files_are_counted_and_named(voc):
    for number in (13, 14, 15, 16):
        (voc / f"JPEGImages/2007_0000{number}.jpg").unlink()
    (voc / "SegmentationClassAug/2007_000020.png").unlink()
    _fails(voc, "'val'", "5 files", "000013.jpg", "000014.jpg", "000015.jpg")


def test_lists_may_hold_blank_lines_and_dos_ends(voc):
    (voc / PARTS[2] / "odd.txt").write_bytes(b"\r\n2007_000002 \r\n\n 2007_000001\n2007_000002")
    assert find_folder(str(voc)).ids("odd", "data.val_list") == ["2007_000002", "2007_000001"]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_pixel_counts_are_of_the_mask_as_stored(voc, mode):
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 3, 20, 255], (33, 47)).astype(np.uint8)
    image = rng.integers(0, 256, (33, 47, 3), dtype=np.uint8)
    write_pair(voc, "mine", image, labels, mode)
    folder = pascal_folder(voc)
    counts = folder.pixel_counts(["2007_000001", "mine"])
    np.testing.assert_array_equal(counts[1], [(labels == c).sum() for c in range(21)])
    assert counts[0, 1] == 48 * 46
    np.testing.assert_array_equal(folder.labels("mine"), labels)


def test_an_image_keeps_its_stored_pixels(voc):
    """A camera's note to turn the picture is for viewers; the mask is drawn on stored pixels."""
    ramp = np.broadcast_to(np.arange(120, dtype=np.uint8)[:, None], (90, 120, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = voc / "JPEGImages/2007_000001.jpg"
    Image.fromarray(np.repeat(ramp, 3, axis=2)).save(path, exif=exif)
    assert pascal_folder(voc).image("2007_000001").size == (120, 90)
    Image.fromarray(ramp[..., 0].copy()).save(path)
    assert pascal_folder(voc).image("2007_000001").mode == "RGB"


def test_wrong_masks_are_named(voc):
    mask = voc / "SegmentationClassAug/2007_000017.png"
    labels = np.array(Image.open(mask))
    Image.fromarray(np.repeat(labels[..., None], 3, axis=2)).save(mask)
    _fails(voc, "2007_000017.png", "RGB")
    labels[4, 5] = 37
    Image.fromarray(labels).save(mask)
    _fails(voc, "2007_000017.png", "37", "0-20 and 255")
    Image.fromarray(np.zeros((91, 120), np.uint8)).save(mask)
    _fails(voc, "2007_000017.jpg", "120 x 90", "120 x 91")


@pytest.mark.parametrize(
    "name", ["JPEGImages/2007_000017.jpg", "SegmentationClassAug/2007_000017.png"]
)
@pytest.mark.parametrize("part", [0, 0.5])
def test_broken_files_are_named(voc, name, part):
    path = voc / name
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    read = pascal_folder(voc).image if name.startswith("JPEG") else pascal_folder(voc).labels
    for use in (read, lambda image_id: pascal_folder(voc).pixel_counts([image_id])):
        with pytest.raises(UserError) as error:
            use("2007_000017")
        told(error, path.name, "copy the file again")


def test_a_fold_without_episodes_is_an_error(voc):
    _fails(voc, "fold 3 test", "2 images", fold=3)
    _fails(voc, "fold 0 test", "5 images", "data.shots", shots=4)


def test_episodes_follow_the_settings(voc):
    cfg = DataConfig(root=str(voc), fold=1, shots=2, image_size=40)
    test = pascal_episodes(cfg, "test", seed=5, length=33)
    assert (test.draw, test.seed, test.shots, test.size, len(test)) == (draw_test, 5, 2, 40, 33)
    assert test.fold.classes == (6, 7, 8, 9, 10)
    assert {c: len(ids) for c, ids in test.fold.entries.items() if ids} == {6: 4, 7: 4}
    assert test[0].reference_image.shape == (2, 40, 40, 3)
    train = pascal_episodes(cfg, "train", seed=5)
    assert train.draw is draw_train
    assert len(train) == len(train.fold.images) == 5  # those of 1 and 11 that show no novel class
    assert not set(train.fold.images) & set(test.fold.images)


def test_real_masks_have_the_published_pixel_counts(outside_data):
    folder = find_folder(str(outside_data / "data"))
    lists = {"train": "train_aug", "test": "val"}
    ids = {split: folder.ids(name, "data.list") for split, name in lists.items()}
    counts = {split: folder.pixel_counts(names) for split, names in ids.items()}
    with np.load(outside_data / "data/pascal_pixel_counts.npz") as file:
        known = dict(zip(file["ids"].tolist(), file["counts"], strict=True))
    for split in lists:
        np.testing.assert_array_equal(counts[split], [known[i] for i in ids[split]])
    for fold in (1, 2):
        novel = PASCAL_5I.novel[fold]
        train = PASCAL_5I.index(ids["train"], counts["train"], fold, "train").drawable(1)
        test = PASCAL_5I.index(ids["test"], counts["test"], fold, "test").drawable(1)
        assert not set(train.images) & set(test.images)
        assert len(train.images) > 500 and len(test.images) > 150
        for image_id in train.images[::25]:
            assert not np.isin(folder.labels(image_id), novel).any()
        for i in range(0, 60, 3):
            spec = draw_test(test, 321, i, 2)
            for image_id in (spec.target_id, *spec.reference_ids):
                assert (folder.labels(image_id) == spec.class_id).sum() >= 2048
