"""A user's own folder: odd files are handled, bad ones named before the first episode."""

import dataclasses
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from conftest import told
from PIL import Image, ImageDraw

from prosam_jax import cli
from prosam_jax.config import DataConfig
from prosam_jax.data import datasets
from prosam_jax.data.datasets.folder_check import check
from prosam_jax.data.datasets.folder_files import find_folder
from prosam_jax.data.folds import describe
from prosam_jax.data.transforms import resize_image
from prosam_jax.errors import UserError
from tools import bad_pictures
from tools.bad_pictures import coco, labels, shape

DOCUMENT = (pathlib.Path(__file__).parents[1] / "docs/data.md").read_text() + "\n"
# What is white or black of a picture whose file is odd; others are white.
BLACK = {"1 x 1 pixels", "20,000 pixels wide"}


@pytest.fixture
def small(tmp_path):
    """The good folder of one picture; in a path with a space."""
    root = tmp_path / "my data"
    bad_pictures.write_folder(root)
    return root


@pytest.mark.parametrize("case", bad_pictures.ODD, ids=lambda case: case.what)
def test_odd_files_are_handled(small, case):
    case.change(small)
    folder = find_folder(str(small))
    assert check(folder).faults == {}
    (image_id,) = folder.masks
    image, mask = folder.image(image_id), folder.labels(image_id)
    assert (image.mode, (image.height, image.width)) == ("RGB", mask.shape)
    pixels = np.asarray(image)
    assert pixels.max() <= 8 if case.what in BLACK else pixels.min() >= 247
    assert set(np.unique(mask)) <= {0, 1}


def test_pictures_are_turned_as_their_masks(small):
    """A picture with a marked corner, and masks as a viewer shows it and as it is stored."""
    picture = Image.fromarray(bad_pictures.WHITE)
    picture.paste((0, 0, 0), (0, 0, 12, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    (small / "images/a.png").unlink()
    picture.save(small / "images/a.jpg", exif=exif)
    stored = np.asarray(find_folder(str(small)).image("a.jpg"))
    assert stored.shape == (30, 40, 3) and stored[:8, :8].max() < 60
    Image.fromarray(labels().T.copy()).save(small / "masks/a.png")
    turned = np.asarray(find_folder(str(small)).image("a.jpg"))
    assert turned.shape == (40, 30, 3) and turned[:8, -8:].max() < 60


@pytest.mark.parametrize("turned", [False, True])
def test_fast_decoding_turns_pictures_too(small, turned):
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (128, 160, 3)).copy())
    exif = Image.Exif()
    exif[0x0112] = 8  # shown after a quarter turn to the left
    (small / "images/a.png").unlink()
    picture.save(small / "images/a.jpg", exif=exif)
    Image.new("L", (128, 160) if turned else (160, 128), 1).save(small / "masks/a.png")
    exact = find_folder(str(small))
    fast = dataclasses.replace(exact, square=32)
    assert fast.image("a.jpg").size == (32, 32)
    one, other = (resize_image(folder.image("a.jpg"), 32).astype(int) for folder in (exact, fast))
    assert np.abs(one - other).max() <= 1
    Image.new("L", (160, 127), 1).save(small / "masks/a.png")
    with pytest.raises(UserError) as error:
        fast.image("a.jpg")
    told(error, "a.jpg", "128 x 160", "160 x 127")


@pytest.mark.parametrize(
    "case", (*bad_pictures.BAD, *bad_pictures.SOURCES), ids=lambda case: case.what
)
def test_bad_files_are_named_in_one_line(case):
    if "COCO" in case.what:
        pytest.importorskip("pycocotools")
    said = bad_pictures.says(case).splitlines()
    assert not said[0].startswith("DIR: pictures:")
    assert "DIR/" in said[0]
    assert all("DIR" in line for line in said)
    others_words = "cannot read" in said[0] or "(" in said[0]  # they change with the libraries
    assert others_words or f"| {case.what} | {said[0]} |\n" in DOCUMENT


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("PNG cut short", ("cannot read DIR/images/a.png: ", "truncated", "copy the file again")),
        ("PNG with a flipped byte", ("cannot read DIR/images/a.png: ", "copy the file again")),
        ("32 bits, TIFF", ("DIR/images/a.tif", "70000", "save it with 8 or 16 bits")),
        ("12 of 16 bits", ("DIR/images/a.png", "4095", "save it with 8 bits")),
        ("a link to nothing", ("DIR/images/a.png is missing",)),
        ("mask without picture", ("DIR/masks/b.png", "DIR/images")),
        ("two masks of one picture", ("DIR/masks/a.bmp", "a.png", "remove one")),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_sentences_name_fault_and_remedy(what, words):
    (case,) = (case for case in bad_pictures.BAD if case.what == what)
    said = bad_pictures.says(case).splitlines()[0]
    assert all(word in said for word in words), said


@pytest.mark.parametrize("source", ["table", "numbers", "coco", "labelme"])
def test_masks_are_made_of_each_source(small, source, capsys):
    (small / "masks").rename(small / "parts")
    triangle = Image.new("L", (40, 30))
    ImageDraw.Draw(triangle).polygon([(0, 0), (9, 0), (9, 9)], fill=1)
    flags = {"coco": "t.json", "labelme": "json"}.get(source, "t.csv")
    if source == "coco":
        pytest.importorskip("pycocotools")
    if source != "numbers":
        (small / "classes.txt").unlink()
    rows = {
        "table": "\ufeffimage,mask,class\r\nimages/a.png,parts/a.png,ox\r\na.png,parts/b.png,cat\n",
        "numbers": "image,mask\na.png,parts/a.png\n",
    }
    other = np.zeros((30, 40), np.uint8)
    other[:5] = 255
    Image.fromarray(other).save(small / "parts/b.png")
    (small / "json").mkdir()
    (small / "json/a.json").write_text(bad_pictures.json.dumps({"shapes": [shape()]}))
    (small / "t.json").write_text(bad_pictures.json.dumps(coco()))
    (small / "t.csv").write_text(rows.get(source, ""))
    command = ["folder", "--root", str(small), "--annotations", str(small / flags)]
    for _ in range(2):  # the second time changes nothing
        assert cli.main(["prepare", *command]) == 0
    shown = {"table": "1 of cat, 1 of ox", "numbers": "1 of cat, none of dog"}
    printed = capsys.readouterr().out
    assert "bad files: 0" in printed and shown.get(source, "1 of cat") in printed
    assert f"prosam train --config folder --config.data.root='{small}'" in printed
    folder = find_folder(str(small))
    found = folder.labels("a.png")
    if source == "table":
        assert folder.class_names == ("cat", "ox")
        np.testing.assert_array_equal(found, np.where(other > 0, 1, 2 * labels()))
    elif source == "numbers":
        np.testing.assert_array_equal(found, labels())
    else:
        assert folder.class_names == ("cat",)
        inside = np.asarray(triangle) > 0
        assert not (found > inside).any()  # of 55 pixels; COCO's rule leaves out half the rim
        assert found.sum() >= (36 if source == "coco" else 55)


def test_a_jpeg_in_a_table_is_cut_at_half(small, capsys):
    disc = np.hypot(*np.mgrid[-15:15, -20:20]) < 9
    (small / "masks").rename(small / "parts")
    (small / "classes.txt").unlink()
    Image.fromarray(disc.astype(np.uint8) * 255).save(small / "parts/a.jpg", quality=75)
    (small / "t.csv").write_text("image,mask,class\na.png,parts/a.jpg,ox\n")
    command = ["prepare", "folder", "--root", str(small), "--annotations", str(small / "t.csv")]
    assert cli.main(command) == 0
    np.testing.assert_array_equal(find_folder(str(small)).labels("a.png"), disc)
    (small / "t.csv").write_text("image,mask\na.png,parts/a.jpg\n")  # of class numbers
    assert cli.main(command) == 1
    assert "compressed with loss (JPEG)" in capsys.readouterr().out


def test_a_raw_file_takes_no_mask_from_the_picture_beside_it(small):
    for name in ("a.CR2", "a.HEIC"):
        (small / "images" / name).write_bytes(b"\0\0\0\x18ftypheic")
    found = check(find_folder(str(small)))
    assert set(found.faults) == {"a.CR2", "a.HEIC"} and found.shares == {"a.png": {1: 0.5}}
    assert "raw picture" in found.faults["a.CR2"] and "HEIC" in found.faults["a.HEIC"]
    Image.fromarray(bad_pictures.WHITE).save(small / "images/a.bmp")
    assert "share one mask" in check(find_folder(str(small))).faults["a.png"]


def test_notes_of_an_earlier_reader_are_not_trusted(small):
    folder = find_folder(str(small))
    check(folder, keep=True)
    path = small / "checked.json"
    held = json.loads(path.read_text())
    held["files"]["a.png"]["shares"] = {"2": 1.0}
    path.write_text(json.dumps(held))
    assert check(folder).shares == {"a.png": {2: 1.0}}
    del held["reader"]
    path.write_text(json.dumps(held))
    assert check(folder).shares == {"a.png": {1: 0.5}}


def test_masks_made_by_hand_are_not_overwritten(small, capsys):
    path = small / "masks/a.png"
    drawn = path.read_bytes()
    (small / "json").mkdir()
    (small / "json/a.json").write_text(bad_pictures.json.dumps({"shapes": [shape()]}))
    (small / "classes.txt").unlink()
    command = ["folder", "--root", str(small), "--annotations", str(small / "json")]
    assert cli.main(["prepare", *command, "--check"]) == 1
    told(capsys.readouterr().err, "--check", "--annotations")
    assert cli.main(["prepare", *command]) == 1
    told(capsys.readouterr().err, path, "--force")
    assert path.read_bytes() == drawn
    assert cli.main(["prepare", *command, "--force"]) == 0
    assert path.read_bytes() != drawn


CLASSES = ("cat", "dog", "fox", "owl", "hen")


@pytest.fixture
def own(tmp_path):
    """Four pictures of each of five classes; the last of a class shows the next one too."""
    root = tmp_path / "own"
    for name in ("images/sub", "masks/sub"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    rng = np.random.default_rng(0)
    for c, name in enumerate(CLASSES, 1):
        for i in range(4):
            mask = np.zeros((50, 60), np.uint8)
            mask[5:30, 5:30] = c
            if i == 3:
                mask[40, 40] = c % 5 + 1  # one pixel, too little to count but not to leak
            picture = rng.integers(0, 256, (50, 60, 3), np.uint8)
            Image.fromarray(picture).save(root / f"images/sub/{name} {i}.jpg")
            Image.fromarray(mask).save(root / f"masks/sub/{name} {i}.png")
    return root


def _source(root, split, **settings):
    cfg = DataConfig(name="folder", root=str(root), image_size=32, **settings)
    return datasets.episodes(cfg, split, seed=3, length=6)


def test_novel_classes_do_not_leak(own):
    test = _source(own, "test", novel="owl, fox")
    assert test.fold.entries == {
        c: tuple(f"sub/{CLASSES[c - 1]} {i}.jpg" for i in range(4)) for c in (3, 4)
    }
    train = _source(own, "train", novel="owl, fox")
    assert train.fold.classes == (1, 2, 5)
    assert "sub/dog 3.jpg" not in train.fold.images  # shows a pixel of a fox
    assert len(train.fold.images) == 11
    by_rule = [_source(own, "test", fold=fold).fold.classes for fold in range(4)]
    assert by_rule == [(1, 5), (2,), (3,), (4,)]
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy[5].reference_image, train[5].reference_image)
    with pytest.raises(UserError) as error:
        _source(own, "test", novel="owl, fix")
    told(error, "data.novel='fix'", "nearest: fox")


def test_the_first_targets_show_all_novel_classes(own):
    """Pictures lie in order of their classes, and fewer episodes than pictures are drawn."""
    test = _source(own, "test", novel="owl, fox, dog")
    assert len(test) < len(test.fold.images)
    assert {test.spec(i).class_id for i in range(len(test))} == {2, 3, 4}
    targets = [test.spec(i).target_id for i in range(len(test.fold.images))]
    assert sorted(targets) == list(test.fold.images) != targets


def test_a_class_that_no_picture_shows_is_told(own):
    (own / "classes.txt").write_text("\n".join((*CLASSES, "yak")))
    test = _source(own, "test", novel="owl, yak")
    assert test.fold.filled == (4,)
    line = f"{own} test (held out for testing: owl, yak): 4 images; too few images to draw yak"
    assert describe(test.fold) == line
    with pytest.raises(UserError) as error:
        _source(own, "test", novel="yak")
    told(error, f"{own} test (held out for testing: yak): an episode needs 2 images", "data.novel")


def test_lists_choose_pictures(own):
    (own / "mine.txt").write_text("sub/fox 0\nsub/fox 1.jpg\n\nsub/fox 2\n")
    test = _source(own, "test", fold=2, val_list="mine")
    assert test.fold.entries == {3: ("sub/fox 0.jpg", "sub/fox 1.jpg", "sub/fox 2.jpg")}
    (own / "mine.txt").write_text("sub/fix 0\n")
    with pytest.raises(UserError) as error:
        _source(own, "test", fold=2, val_list="mine")
    told(error, "data.val_list='mine'", "'sub/fix 0'")
    (own / "classes.txt").write_text("cat\n")
    for mask in (own / "masks/sub").iterdir():
        Image.new("L", (60, 50), 1).save(mask)
    with pytest.raises(UserError) as error:
        _source(own, "train")
    told(error, "fold=0", "train")


def test_bad_files_stop_or_are_skipped_with_a_count(own):
    good = _source(own, "train", fold=2)
    for path in (own / "images/sub/cat 1.jpg", own / "masks/sub/owl 2.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as error:
        _source(own, "train", fold=2)
    told(error, "2 bad files", "cat 1.jpg", "prosam prepare folder --check --root")
    skipping = _source(own, "train", fold=2, bad_files="skip")
    lost = {"sub/cat 1.jpg", "sub/owl 2.jpg"}
    assert set(good.fold.images) - set(skipping.fold.images) == lost
    assert describe(skipping.fold).startswith(f"{own} (2 bad files skipped) train (held out ")
    assert "): 13 images" in describe(skipping.fold)
    assert [skipping[i].index for i in range(6)] == list(range(6))


def test_notes_save_reading_until_a_file_changes(own):
    folder = find_folder(str(own))
    first = check(folder, keep=True)
    other = dataclasses.replace(folder, class_names=CLASSES[:4])
    assert len(check(other).faults) == 5  # hens and owl 3: of other classes all is read again
    for path in (own / "masks/sub").iterdir():  # of which reading would tell
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check(folder) == first
    (own / "images/sub/cat 1.jpg").write_bytes(b"")
    assert list(check(folder).faults) == ["sub/cat 1.jpg"]
    assert len(check(other).faults) == len(first.shares) == 20
    assert len(check(folder, trust=False).faults) == 20
