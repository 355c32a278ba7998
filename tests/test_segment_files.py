"""What `prosam segment` writes where, COCO's run lengths, and the command as a user calls it."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import told
from PIL import Image
from small import prompt_encoder_file

from prosam_jax import segment_files
from prosam_jax.errors import UserError
from prosam_jax.segmenter import Segmentation, Segmenter

ROOT = pathlib.Path(__file__).parents[1]
PLAIN = {"overlay": False, "uncertainty": False, "as_json": False, "force": False}


def _folder(path, *names):
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def test_masks_are_named_after_their_targets(tmp_path):
    folder = _folder(
        tmp_path / "in",
        "a.jpg",
        "a.png",
        "A.webp",
        "ü b.JPG",
        "c.d.tif",
        "notes.txt",
        ".DS_Store",
        "clip.mpg",
    )
    (folder / "below.png").mkdir()
    todo = segment_files.plan(
        folder, tmp_path / "out", **PLAIN | {"overlay": True, "as_json": True, "uncertainty": True}
    )
    masks = {file.name: paths["mask"].name for file, paths in todo.outputs.items()}
    assert masks == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "A.webp": "A.webp.png",
        "ü b.JPG": "ü b.png",
        "c.d.tif": "c.d.png",
    }
    assert todo.outputs[folder / "c.d.tif"] == {
        "mask": tmp_path / "out" / "c.d.png",
        "overlay": tmp_path / "out" / "overlay" / "c.d.png",
        "uncertainty": tmp_path / "out" / "uncertainty" / "c.d.png",
    }
    assert todo.json == tmp_path / "out" / "masks.json"
    only = segment_files.plan(folder / "a.jpg", tmp_path / "out", **PLAIN)
    assert only.outputs == {folder / "a.jpg": {"mask": tmp_path / "out" / "a.png"}}
    assert not (tmp_path / "out").exists()


def test_no_two_outputs_have_one_name(tmp_path):
    folder = _folder(tmp_path / "in", "a.jpg", "A.png", "a.jpg.webp", "b.png")
    todo = segment_files.plan(folder, tmp_path / "out", **PLAIN)
    assert sorted(paths["mask"].name for paths in todo.outputs.values()) == [
        "A.png.png", "a.jpg.png", "a.jpg.webp.png", "b.png.png",
    ]  # fmt: skip


def test_a_link_to_nothing_is_a_target_that_cannot_be_read(tmp_path):
    folder = _folder(tmp_path / "in")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "b.png").symlink_to("b.png")
    (folder / "c.png").symlink_to("gone.png")
    todo, bad = segment_files.plan(folder, tmp_path / "out", **PLAIN), {}
    read = segment_files._batches(list(todo.outputs), 4, bad.__setitem__)
    assert [names for names, _ in read] == [[folder / "a.png"]]
    assert "b.png" in str(bad[folder / "b.png"]) and "missing" in str(bad[folder / "c.png"])


def test_a_folder_in_a_masks_place_is_told_first(tmp_path):
    folder, out = _folder(tmp_path / "in", "a.jpg"), tmp_path / "out"
    (out / "a.png").mkdir(parents=True)
    with pytest.raises(OSError, match="a folder, a pipe or a device") as error:
        segment_files.plan(folder, out, **PLAIN | {"force": True})
    assert str(out / "a.png") in str(error.value)


@pytest.mark.parametrize("names", [("a.png",), ("overlay/b.png",), ("masks.json",)], ids=str)
def test_nothing_is_overwritten_unasked(tmp_path, names):
    folder, out = _folder(tmp_path / "in", "a.jpg", "b.jpg"), tmp_path / "out"
    (out / "overlay").mkdir(parents=True)
    for name in names:
        (out / name).touch()
    wanted = PLAIN | {"overlay": True, "as_json": True}
    with pytest.raises(UserError) as error:
        segment_files.plan(folder, out, **wanted)
    told(error, names[0], "--force", "--out")
    segment_files.plan(folder, out, **wanted | {"force": True})


def test_old_run_lengths_do_not_stay_beside_new_masks(tmp_path):
    folder, out = _folder(tmp_path / "in", "a.jpg"), _folder(tmp_path / "out", "masks.json")
    segment_files.plan(folder, out, **PLAIN)
    with pytest.raises(UserError) as error:
        segment_files.plan(folder, out, **PLAIN | {"force": True})
    told(error, "masks.json", "--json")


class _Stopped(Segmenter):
    """Stopped in its second batch."""

    def __init__(self):
        self.batches = 0

    @property
    def classes(self):
        return ("object",)

    def segment(self, images, **_):
        self.batches += 1
        if self.batches == 2:
            raise KeyboardInterrupt
        sizes = [image.shape[:2] for image in images]
        one, none = np.ones(1, np.float32), None
        return [
            Segmentation(("object",), np.ones((1, *s), bool), np.ones(s, np.int32), one, none)
            for s in sizes
        ]


def test_a_stop_leaves_whole_files_and_their_run_lengths(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abcd":
        Image.new("RGB", (9, 8)).save(folder / f"{name}.png")
    todo = segment_files.plan(folder, out, **PLAIN | {"as_json": True})
    with pytest.raises(KeyboardInterrupt):
        segment_files.run(_Stopped(), todo, batch_size=2)
    assert {x.name for x in out.iterdir()} == {"a.png", "b.png", "masks.json"}
    found = json.loads((out / "masks.json").read_text())
    assert [x["file_name"] for x in found["images"]] == ["a.png", "b.png"]
    assert len(found["annotations"]) == 2


def test_large_pictures_are_in_memory_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_files, "_MOST", 300)
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, side in zip(files, (3, 20, 4, 4, 3), strict=True):
        Image.new("RGB", (side, side)).save(file)
    found = list(segment_files._batches(files, 4, lambda *_: None))
    assert [[name.stem for name in names] for names, _ in found] == [["0", "1"], ["2", "3", "4"]]
    assert [image.shape[0] for _, images in found for image in images] == [3, 20, 4, 4, 3]


def test_inputs_are_never_overwritten(tmp_path):
    folder = _folder(tmp_path / "in", "a.png", "mask.png")
    for out in (folder, tmp_path / "out" / ".." / "in"):
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(UserError) as error:
            segment_files.plan(folder, out, **PLAIN | {"force": True})
        told(error, out, "--out")
    with pytest.raises(UserError) as error:
        segment_files.plan(folder / "a.png", folder, **PLAIN | {"force": True})
    told(error, "a.png")
    with pytest.raises(UserError) as error:
        segment_files.plan(
            _folder(tmp_path / "other", "mask.jpg"),
            folder,
            **PLAIN | {"force": True},
            inputs=[folder / "mask.png"],
        )
    told(error, "mask.png")


def test_what_is_missing_is_said(tmp_path):
    folder = _folder(tmp_path / "in", "notes.txt")
    for targets, inputs, *words in (
        (folder, [], folder, "no pictures"),
        (folder / "a.jpg", [], folder / "a.jpg"),
        (folder, [folder / "r.jpg"], folder / "r.jpg"),
    ):
        with pytest.raises(UserError) as error:
            segment_files.plan(targets, tmp_path / "out", **PLAIN, inputs=inputs)
        told(error, *words)
    with pytest.raises(UserError) as error:
        segment_files.plan(folder, folder / "notes.txt", **PLAIN)
    told(error, "--out=", "notes.txt")


def _decoded(segmentation):
    """COCO's run lengths as a mask, by its definition."""
    height, width = segmentation["size"]
    values = np.arange(len(segmentation["counts"])) % 2 == 1
    return np.repeat(values, segmentation["counts"]).reshape(width, height).T


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
def test_run_lengths_are_the_mask(share):
    mask = np.random.default_rng(0).random((5, 7)) < share
    counts = segment_files.run_lengths(mask)
    assert counts[0] == 0 or not mask[0, 0]
    assert all(count > 0 for count in counts[1:])
    np.testing.assert_array_equal(_decoded({"size": [5, 7], "counts": counts}), mask)


def test_coco_lists_every_mask_that_is_not_empty():
    masks = np.zeros((2, 5, 7), np.bool_)
    masks[1, 2:4, 3:7] = True
    one = Segmentation(
        ("cat", "dog"), masks, np.zeros((5, 7), np.int32), np.array([0.5, 0.25], np.float32), None
    )
    paths = [pathlib.Path("x/a.jpg"), pathlib.Path("x/b.jpg")]
    dataset = segment_files.coco(one.classes)
    for path in paths:
        segment_files.add_to_coco(dataset, path, one)
    found = json.loads(json.dumps(dataset))
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [x["file_name"] for x in found["images"]] == ["a.jpg", "b.jpg"]
    assert [(x["id"], x["image_id"], x["category_id"]) for x in found["annotations"]] == [
        (1, 1, 2), (2, 2, 2),
    ]  # fmt: skip
    annotation = found["annotations"][0]
    assert (annotation["bbox"], annotation["area"]) == ([3, 2, 4, 2], 8)
    assert annotation["score"] == 0.25
    np.testing.assert_array_equal(_decoded(annotation["segmentation"]), masks[1])


def _run(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "segment.py"), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_folder_is_segmented(tmp_path):
    model = prompt_encoder_file(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    photos = tmp_path / "my photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("a.jpg", (40, 50)), ("b ü.png", (61, 30)), ("a.png", (33, 33))):
        noise = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        noise.save(photos / name, exif=exif)
    (photos / "broken.jpg").write_bytes((photos / "a.jpg").read_bytes()[:700])
    (photos / "IMG.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (photos / "._a.jpg").write_bytes(b"\0\5\26\7")
    references = photos / "a.jpg", photos / "b ü.png"
    command = [
        f"--prompt-encoder={model}", *(f"--reference={path}" for path in references),
        "--points=3,4;20.5,30", "--points=7,8", "--targets=my photos", "--out=out",
    ]  # fmt: skip
    done = _run(tmp_path, *command, "--overlay", "--uncertainty", "--json=coco-rle")
    assert done.returncode == 1, done.stderr
    assert "wrote 3 masks to out" in done.stdout
    heic, broken, error = done.stderr.splitlines()[-3:]
    assert "my photos/IMG.HEIC" in heic and "pip install pillow-heif" in heic
    assert "my photos/broken.jpg" in broken
    told(f"{error}\n", "2 of 5 targets")
    names = {"a.jpg.png": (50, 40), "a.png.png": (33, 33), "b ü.png": (30, 61)}  # as turned
    out = tmp_path / "out"
    assert {x.name for x in out.iterdir()} == {*names, "overlay", "uncertainty", "masks.json"}
    found = json.loads((out / "masks.json").read_text())
    assert not any(x["iscrowd"] for x in found["annotations"])
    runs = {x["image_id"]: x["segmentation"] for x in found["annotations"]}
    files = {image["file_name"]: image["id"] for image in found["images"]}
    assert list(files) == ["a.jpg", "a.png", "b ü.png"]
    for (name, size), number in zip(names.items(), files.values(), strict=True):
        mask = np.array(Image.open(out / name))
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
        assert mask.shape == size
        assert np.array(Image.open(out / "overlay" / name)).shape == (*size, 3)
        assert np.array(Image.open(out / "uncertainty" / name)).shape == size
        if number in runs:
            np.testing.assert_array_equal(_decoded(runs[number]), mask > 0)
    again = _run(tmp_path, *command)
    assert again.returncode == 1
    told(again.stderr, "out/a.jpg.png, out/a.png.png, out/b ü.png", "--force")


@pytest.mark.slow
def test_the_default_model_is_named_and_mistakes_get_one_line(tmp_path):
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    common = ["--reference=a.png", "--targets=a.png", "--out=out"]
    nothing = _run(tmp_path)
    assert nothing.returncode == 2
    assert all(flag in nothing.stderr for flag in ("--reference", "--targets", "--out"))
    default = _run(tmp_path, *common, "--box=1,2,30,40")
    assert default.returncode == 1
    named, error = default.stderr.splitlines()
    assert "prosam-shapes" in named and "--prompt-encoder" in named
    told(f"{error}\n", "[1.0, 2.0, 30.0, 40.0]", "x0 < x1")
    for flags, *words in (
        ([], "1 --reference", "0", "--mask, --points, --box or --scribble"),
        (["--box=1,2,3"], "--box", "'1,2,3'", "x0,y0,x1,y1"),
        (["--reference=a.png", "--box=1,2,3,4", "--points=1,2"], "--points and --box"),
        (["--points=1,2", "--out=a.png"], "--out=a.png"),
    ):
        done = _run(tmp_path, *common, *flags)
        assert done.returncode == 1
        told(done.stderr, *words)
