"""Files of annotation tools: which pixels become which class, and what is named instead."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import told
from PIL import Image

from prosam_jax import cli, images
from prosam_jax.atomic import locked
from prosam_jax.data.datasets.folder import fold_rule
from prosam_jax.data.datasets.folder_files import find_folder
from prosam_jax.data.prepare import objects, preview
from prosam_jax.data.prepare.coco_masks import read_annotations
from prosam_jax.errors import UserError

mask_codec = pytest.importorskip("pycocotools.mask")

WIDTH, HEIGHT = 80, 60
SQUARE = [5, 5, 25, 5, 25, 25, 5, 25]
OTHER = [40, 5, 60, 5, 60, 25, 40, 25]


@pytest.fixture
def root(tmp_path):
    """A folder with the pictures a.png and b.png of 80 x 60 pixels."""
    (tmp_path / "images").mkdir()
    for name in "ab":
        _picture(tmp_path, f"{name}.png")
    return tmp_path


def _picture(root, name, size=(WIDTH, HEIGHT), **options):
    path = root / "images" / name
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, "gray").save(path, **options)


def _prepare(root, source, *flags):
    command = ["prepare", "folder", "--root", str(root), "--annotations", str(root / source)]
    return cli.main([*command, *map(str, flags)])


def _mask(root, name="a"):
    return np.asarray(Image.open(root / f"masks/{name}.png"))


def _boxes(*boxes, size=(WIDTH, HEIGHT)):
    """A mask of filled boxes (number, left, top, right, bottom); later ones cover earlier ones."""
    mask = np.zeros(size[::-1], np.uint8)
    for number, left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = number
    return mask


def _annotation(i=1, image=1, category=1, segmentation=(SQUARE,), **more):
    given = list(segmentation) if isinstance(segmentation, tuple) else segmentation
    common = {"id": i, "image_id": image, "category_id": category, "iscrowd": 0}
    return common | {"segmentation": given} | more


def _coco(root, *annotations, images=None, categories=None):
    held = {
        "images": images or [_image(1, "a.png"), _image(2, "b.png")],
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": list(annotations),
    }
    (root / "t.json").write_text(json.dumps(held))
    return "t.json"


def _image(i, name, width=WIDTH, height=HEIGHT):
    return {"id": i, "file_name": name, "width": width, "height": height}


def _labelme(root, *shapes, name="a", size=(WIDTH, HEIGHT)):
    path = root / f"json/{name}.json"
    path.parent.mkdir(exist_ok=True)
    held = [
        {"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes
    ]
    path.write_text(json.dumps({"shapes": held, "imageWidth": size[0], "imageHeight": size[1]}))
    return "json"


def _text_of(mask):
    """COCO's run lengths as text."""
    held = mask_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": held["counts"].decode()}


# Which pixels ---------------------------------------------------------------------------------


def test_labelme_background_is_0_and_ignore_is_255(root, capsys):
    corners = [[10, 10], [60, 10], [60, 50], [10, 50]]
    hole = [[25, 20], [45, 20], [45, 40], [25, 40]]
    strip = [[65, 5], [78, 5], [78, 55], [65, 55]]
    source = _labelme(
        root,
        ("donut", "polygon", corners),
        ("_Background_", "polygon", hole),
        ("__ignore__", "polygon", strip),
    )
    (root / "images/b.png").unlink()
    assert _prepare(root, source) == 0
    assert (root / "classes.txt").read_text() == "donut\n"
    # labelme's own rule: the rim belongs to the object
    expected = _boxes((1, 10, 10, 61, 51), (0, 25, 20, 46, 41), (255, 65, 5, 79, 56))
    np.testing.assert_array_equal(_mask(root), expected)
    said = capsys.readouterr().out
    assert "objects: 1 of donut; background: 1 of _Background_; ignored: 1 of __ignore__" in said
    assert "smallest: 441 pixels" in said and "largest: 2,091" in said


def test_a_class_that_classes_txt_names_is_one_whatever_its_name(root):
    source = _labelme(root, ("background", "rectangle", [[0, 0], [9, 9]]))
    (root / "classes.txt").write_text("background\n")
    _prepare(root, source)
    np.testing.assert_array_equal(_mask(root), _boxes((1, 0, 0, 10, 10)))


@pytest.mark.parametrize("points", [[[4, 6], [20, 9]], [[20, 9], [4, 6]],
                                    [[4, 6], [20, 6], [20, 9], [4, 9]]])  # fmt: skip
def test_rectangles_of_labelme_have_two_corners_or_four(root, points):
    _prepare(root, _labelme(root, ("cat", "rectangle", points)))
    np.testing.assert_array_equal(_mask(root), _boxes((1, 4, 6, 21, 10)))


def test_ids_are_equal_as_numbers_and_as_text(root):
    given = [_annotation(1, "1"), _annotation(2, 2.0, "2", (OTHER,))]
    assert _prepare(root, _coco(root, *given)) == 0
    np.testing.assert_array_equal(_mask(root, "a"), _boxes((1, 5, 5, 25, 25)))
    np.testing.assert_array_equal(_mask(root, "b"), _boxes((2, 40, 5, 60, 25)))


def test_two_entries_of_one_file_are_drawn_together(root, capsys):
    (root / "images/b.png").unlink()
    both = [_image(1, "a.png"), _image(2, "a.png")]
    given = [_annotation(1, 1), _annotation(2, 2, 2, (OTHER,))]
    assert _prepare(root, _coco(root, *given, images=both)) == 0
    expected = _boxes((1, 5, 5, 25, 25), (2, 40, 5, 60, 25))
    np.testing.assert_array_equal(_mask(root), expected)
    assert "images 1 and 2 are both a.png" in capsys.readouterr().out
    shutil.rmtree(root / "masks")
    both[1]["file_name"] = "./images/a.png"  # another name for it
    assert _prepare(root, _coco(root, *given, images=both)) == 0
    np.testing.assert_array_equal(_mask(root), expected)
    assert "image 1 and image 2 are both a.png" in capsys.readouterr().out
    both[1]["width"] = 40
    assert _prepare(root, _coco(root, *given, images=both)) == 1


def test_a_flat_polygon_is_one_part(root):
    assert _prepare(root, _coco(root, _annotation(segmentation=SQUARE))) == 0
    np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25)))


@pytest.mark.parametrize("flags", [(), ("--crowds-as-objects",)])
def test_crowds_are_counted_and_can_be_read_as_objects(root, capsys, flags):
    inside = _boxes((1, 30, 10, 50, 40))
    crowds = [_annotation(i, i, 1, _text_of(inside), iscrowd=1) for i in (1, 2)]
    status = _prepare(root, _coco(root, *crowds, _annotation(3, 1, 2)), *flags)
    number = 1 if flags else 255
    expected = _boxes((number, 30, 10, 50, 40), (2, 5, 5, 25, 25))
    np.testing.assert_array_equal(_mask(root), expected)
    said = capsys.readouterr().out
    assert ("iscrowd 1, which are ignored (255): 2;" in said) == (not flags)
    assert ("--crowds-as-objects" in said) == (not flags)
    # The other picture has only the crowd.
    assert (status, "bad files: 0" in said) == ((0, True) if flags else (1, False))


@pytest.mark.parametrize(
    ("given", "crowd"), [("0", False), ("1", True), (0.0, False), (True, True), (False, False)]
)
def test_iscrowd_may_be_text(root, given, crowd):
    _prepare(root, _coco(root, _annotation(1, iscrowd=given), _annotation(2, 1, 2, (OTHER,))))
    expected = _boxes((255 if crowd else 1, 5, 5, 25, 25), (2, 40, 5, 60, 25))
    np.testing.assert_array_equal(_mask(root), expected)


def test_equal_names_are_one_class(root, capsys):
    categories = [
        {"id": 3, "name": "cat"},
        {"id": 7, "name": "\ufeff cat\n"},
        {"id": 8, "name": "a  b"},
    ]
    given = [_annotation(1, 1, 3), _annotation(2, 1, 7, (OTHER,)), _annotation(3, 2, 8)]
    assert _prepare(root, _coco(root, *given, categories=categories)) == 0
    assert (root / "classes.txt").read_text() == "cat\na b\n"
    np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25), (1, 40, 5, 60, 25)))
    np.testing.assert_array_equal(_mask(root, "b"), _boxes((2, 5, 5, 25, 25)))
    assert "categories 3 and 7 are both 'cat'" in capsys.readouterr().out


def test_the_name_of_a_project_is_no_class(root):
    """Roboflow's form: category 0 stands above the others and has no object."""
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
    ]
    assert _prepare(root, _coco(root, _annotation(), categories=categories)) == 0
    assert (root / "classes.txt").read_text() == "cat\n"


def test_bare_names_and_outer_folders_stand_for_one_picture(root):
    _picture(root, "cats/0001.png")
    _picture(root, "0002.png")
    names = ["0001.png", "/home/me/set/0002.png", "b.png", "images\\a.png"]
    entries = [_image(i, name) for i, name in enumerate(names)]
    given = [_annotation(i, i) for i in range(4)]
    assert _prepare(root, _coco(root, *given, images=entries)) == 0
    for name in ("cats/0001", "0002", "a", "b"):
        np.testing.assert_array_equal(_mask(root, name), _boxes((1, 5, 5, 25, 25)))


def _turned_photo(root):
    (root / "images/b.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    (root / "images/a.png").unlink()
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    picture.paste((0, 0, 0), (5, 5, 25, 25))
    picture.save(root / "images/a.jpg", exif=exif, quality=95)


@pytest.mark.parametrize("as_stored", [True, False])
@pytest.mark.parametrize("tool", ["coco", "labelme"])
def test_outlines_fit_the_frame_that_the_file_states(root, tool, as_stored):
    """The object is where the picture, as training reads it, is black."""
    _turned_photo(root)
    size = (WIDTH, HEIGHT) if as_stored else (HEIGHT, WIDTH)
    left, top = (5, 5) if as_stored else (HEIGHT - 25, 5)
    if tool == "coco":
        box = [left, top, left + 20, top, left + 20, top + 20, left, top + 20]
        source = _coco(root, _annotation(segmentation=(box,)), images=[_image(1, "a.jpg", *size)])
    else:
        box = [[left, top], [left + 19, top + 19]]
        source = _labelme(root, ("cat", "rectangle", box), size=size)
    assert _prepare(root, source) == 0
    folder = find_folder(str(root))
    black = np.asarray(folder.image("a.jpg"))[..., 0] < 128
    np.testing.assert_array_equal(folder.labels("a.jpg"), black)


def test_tables_know_the_conventions(root):
    for i, box in enumerate([(5, 5, 40, 40), (10, 10, 20, 20), (50, 5, 60, 60)]):
        Image.fromarray(_boxes((255, *box))).save(root / f"{i}.png")
    rows = "a.png,0.png, cat \na.png,1.png,background\na.png,2.png,__ignore__\n"
    (root / "t.csv").write_text(f"image,mask,class\n{rows}")
    (root / "images/b.png").unlink()
    assert _prepare(root, "t.csv") == 0
    assert (root / "classes.txt").read_text() == "cat\n"
    expected = _boxes((1, 5, 5, 40, 40), (0, 10, 10, 20, 20), (255, 50, 5, 60, 60))
    np.testing.assert_array_equal(_mask(root), expected)


def test_yolo_segments(root, capsys):
    (root / "labels/deep").mkdir(parents=True)
    _picture(root, "deep/c.jpg")
    (root / "t.yaml").write_text("path: ..\nnc: 2\nnames:\n  0: cat\n  1: big dog\n")
    square = "0.0625 0.0833333 0.3125 0.0833333 0.3125 0.4166667 0.0625 0.4166667"
    (root / "labels/a.txt").write_text(f"1 {square}\n\n")
    (root / "labels/b.txt").write_text("")
    (root / "labels/classes.txt").write_text("cat\nbig dog\n")  # LabelImg's
    (root / "labels/deep/c.txt").write_text(f"0 {square}\n")
    assert _prepare(root, "t.yaml", "--preview", root / "sheet.png") == 0
    assert (root / "classes.txt").read_text() == "cat\nbig dog\n"
    np.testing.assert_array_equal(_mask(root), _boxes((2, 5, 5, 25, 25)))
    np.testing.assert_array_equal(_mask(root, "deep/c"), _boxes((1, 5, 5, 25, 25)))
    assert not _mask(root, "b").any()
    assert "shows 3 of 3 pictures" in capsys.readouterr().out


def test_cvat_polygons_ellipses_and_masks_in_z_order(root):
    (root / "t.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><job>
        <labels><label><name>dog</name></label><label><name>cat</name></label></labels></job></meta>
        <image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">
        <mask label="cat" rle="1, 4, 1" left="70" top="50" width="3" height="2" z_order="0"/>
        <polygon label="dog" points="5,5;25,5;25,25;5,25" z_order="1"/>
        <polygon label="cat" points="5,5;15,5;15,25;5,25" z_order="0"/></image>
        <image id="1" name="b.png" width="{WIDTH}" height="{HEIGHT}">
        <ellipse label="cat" cx="40" cy="30" rx="20" ry="10" rotation="90"/></image>
        </annotations>"""
    )
    assert _prepare(root, "t.xml") == 0
    assert (root / "classes.txt").read_text() == "dog\ncat\n"
    expected = _boxes((2, 70, 50, 73, 52), (1, 5, 5, 25, 25))
    expected[50, 70] = expected[51, 72] = 0
    np.testing.assert_array_equal(_mask(root), expected)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((x - 40) / 10) ** 2 + ((y - 30) / 20) ** 2 < 1
    assert ((_mask(root, "b") == 2) != inside).sum() <= 12  # of 628, on the rim


def test_label_studio_polygons(root):
    def task(i, link, *labels):
        points = [[6.25, 100 / 12], [31.25, 100 / 12], [31.25, 500 / 12], [6.25, 500 / 12]]
        results = [
            {
                "type": "polygonlabels",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "image_rotation": 0,
                "value": {"points": points, "closed": True, "polygonlabels": [label]},
            }
            for label in labels
        ]
        results.append({"type": "relation", "from_id": "a", "to_id": "b"})
        done = [{"was_cancelled": True, "result": []}, {"result": results}]
        return {"id": i, "data": {"image": link}, "annotations": done}

    links = "/data/upload/3/0a1b2c3d-a.png", "/data/local-files/?d=set/b.png"
    tasks = [task(i, link, label) for i, (link, label) in enumerate(zip(links, "xy", strict=True))]
    (root / "t.json").write_text(json.dumps(tasks))
    assert _prepare(root, "t.json") == 0
    np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25)))
    np.testing.assert_array_equal(_mask(root, "b"), _boxes((2, 5, 5, 25, 25)))


def test_run_lengths_as_text_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 60, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        mask[: height // 2] = rng.random() < 0.5  # long runs, too
        shape = objects.run_lengths(_text_of(mask))
        np.testing.assert_array_equal(objects.fill(shape, (width, height)), mask)


# What is named --------------------------------------------------------------------------------

RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 200, 4500]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation": [[5.0, float("nan"), 25, 5, 25, 25]]}, ("nan",)),
        ({"segmentation": [[5, 2e8, 25, 5, 25, 25]]}, ("200000000.0",)),
        ({"segmentation": [[5, 10**400, 25, 5, 25, 25]]}, ("1000",)),
        ({"segmentation": [[*SQUARE, 9]]}, ("9 numbers", "even")),
        ({"segmentation": [10, 10, 30, 20]}, ("4 numbers", "3 points")),
        ({"segmentation": [SQUARE, [1, 2, 3, 4]]}, ("4 numbers",)),
        ({"segmentation": [[[[5]]] * 6]}, ("not a list of numbers",)),
        ({"segmentation": [["5", 5, 25, 5, 25, 25]]}, ("not a list of numbers",)),
        ({"segmentation": [[True, 5, 25, 5, 25, 25]]}, ("not a list of numbers",)),
        ({"segmentation": []}, ("no outline", "boxes")),
        ({"segmentation": None}, ("no outline", "boxes")),
        ({"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}, ("fractions", "pixels")),
        ({"segmentation": [[5, 5, 200, 5, 200, 25]]}, ("200, 5", "80 x 60")),
        ({"segmentation": [[-20, 5, 25, 5, 25, 25]]}, ("-20, 5", "80 x 60")),
        ({"segmentation": [[5, 5, 25, 25, 5, 5]]}, ("no pixel",)),
        ({"segmentation": RUNS | {"counts": [100, 200]}}, ("300", "4,800")),
        ({"segmentation": RUNS | {"counts": [100, 200, 9500]}}, ("9,800", "4,800")),
        ({"segmentation": RUNS | {"counts": [100, -200, 4900]}}, ("-200",)),
        ({"segmentation": RUNS | {"counts": [4800, 0.0]}}, ("whole numbers",)),
        ({"segmentation": RUNS | {"size": [WIDTH, HEIGHT]}}, ("60 x 80", "80 x 60")),
        ({"segmentation": RUNS | {"size": [10**6, 10**6]}}, ("1000000",)),
        ({"segmentation": RUNS | {"counts": "U[2d0"}}, ("add up",)),
        ({"segmentation": RUNS | {"counts": "ooo"}}, ("cut short",)),
        ({"segmentation": RUNS | {"counts": "é"}}, ("characters",)),
        ({"segmentation": RUNS | {"counts": "oooooooo0"}}, ("digits",)),
        ({"iscrowd": "no"}, ("'no'", "0 or 1")),
        ({"iscrowd": 2}, ("2", "0 or 1")),
        ({"iscrowd": None}, ("None", "0 or 1")),
        ({"category_id": 9}, ("category 9",)),
    ],
    ids=lambda x: "",
)
def test_an_annotation_that_is_not_valid_is_named(root, capsys, changes, words):
    good = _annotation(2, 2)
    assert _prepare(root, _coco(root, _annotation(7) | changes, good)) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "annotation 7" in x]
    assert line.startswith(f"{root / 't.json'}: annotation 7 on a.png ")
    assert all(word in line for word in words), line
    assert not (root / "masks/a.png").exists()
    np.testing.assert_array_equal(_mask(root, "b"), _boxes((1, 5, 5, 25, 25)))


def test_an_annotation_of_no_image_is_named(root, capsys):
    given = [_annotation(7, 9), _annotation(8, None), _annotation(1, 1)]
    assert _prepare(root, _coco(root, *given)) == 1
    assert "annotation 7 is of image 9, which the file does not list (2 such" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"images": [_image(1, "a.png"), _image("1", "b.png")]}, ("'a.png'", "'b.png'", "id, 1")),
        ({"images": [_image(None, "a.png")]}, ("'a.png'", "None")),
        ({"images": [_image(1, 5)]}, ("image 1", "5")),
        ({"images": [_image("x\ny", 5)]}, (r"'x\ny'",)),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": "1", "name": "dog"}]}, ("'dog'", "1")),
        ({"categories": [{"id": 1, "name": " "}]}, ("category 1", "no class name")),
        ({"categories": [{"id": 1, "name": "\x1b[0m"}]}, ("control character", "\\x1b")),
        ({"categories": [{"id": i, "name": f"c{i}"} for i in range(255)]}, ("255", "254")),
    ],
    ids=lambda x: "",
)
def test_a_file_that_contradicts_itself_writes_nothing(root, capsys, held, words):
    assert _prepare(root, _coco(root, _annotation(), **held)) == 1
    told(capsys.readouterr().err, root / "t.json", *words)
    assert sorted(x.name for x in root.iterdir()) == ["images", "t.json"]


def test_a_field_that_is_there_twice_is_named(root, capsys):
    (root / "t.json").write_text('{"images": [], "annotations": [1], "annotations": []}')
    assert _prepare(root, "t.json") == 1
    told(capsys.readouterr().err, "t.json", "'annotations'", "twice")


def test_a_picture_of_another_folder_does_not_stand_in(root, capsys):
    _picture(root, "cats/0001.png")
    entries = [_image(1, "cats/0001.png"), _image(2, "dogs/0001.png")]
    given = [_annotation(1, 1), _annotation(2, 2, 2, (OTHER,))]
    assert _prepare(root, _coco(root, *given, images=entries)) == 1
    said = capsys.readouterr().out
    assert "'dogs/0001.png', which is not in images; cats/0001.png is in another folder" in said
    np.testing.assert_array_equal(_mask(root, "cats/0001"), _boxes((1, 5, 5, 25, 25)))


def test_bare_names_that_fit_several_pictures_are_named(root, capsys):
    _picture(root, "cats/0001.png")
    entries = [_image(1, "0001.png"), _image(2, "x/cats/0001.png")]
    assert _prepare(root, _coco(root, _annotation(), images=entries)) == 1
    assert capsys.readouterr().out.count("whole paths") == 2
    _picture(root, "dogs/0001.png")
    assert _prepare(root, _coco(root, _annotation(), images=entries[:1])) == 1
    assert "2 are there in other folders" in capsys.readouterr().out


@pytest.mark.parametrize("tool", ["coco", "labelme"])
def test_a_picture_shrunk_later_is_named_with_both_sizes(root, capsys, tool):
    _picture(root, "a.png", (40, 30))
    if tool == "coco":
        source, name = _coco(root, _annotation()), "t.json"
    else:
        corners = [[40, 30], [78, 30], [78, 58]]
        source, name = _labelme(root, ("cat", "polygon", corners)), "a.json"
    assert _prepare(root, source) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert all(word in line for word in (name, "80 x 60", "a.png has 40 x 30")), line


def test_hidden_and_tiny_objects_are_counted(root, capsys):
    tiny = [70, 50, 72, 50, 72, 52, 70, 52]
    given = [_annotation(1), _annotation(2, 1, 2), _annotation(3, 2, 1, (tiny,))]
    assert _prepare(root, _coco(root, *given)) == 0
    said = capsys.readouterr().out
    assert "objects that later ones cover completely: 1" in said
    assert "fewer than 10 pixels: 1, such as" in said and "annotation 3 on b.png" in said


def test_existing_masks_stop_before_anything_is_written(root, capsys):
    (root / "masks").mkdir()
    Image.new("L", (WIDTH, HEIGHT), 1).save(root / "masks/b.png")
    assert _prepare(root, _coco(root, _annotation(), _annotation(2, 2))) == 1
    told(capsys.readouterr().err, root / "masks/b.png", "--force")
    assert [x.name for x in (root / "masks").iterdir()] == ["b.png"]
    assert not (root / "classes.txt").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><annotations>&a;</annotations>", ("DOCTYPE",)),
        ("t.xml", "<annotation><object/></annotation>", ("<annotation>", "CVAT")),
        ("t.xml", "<annotations><track/></annotations>", ("CVAT for images",)),
        ("t.xml", "<annotations>", ("t.xml", "damaged")),
        ("t.yaml", "names: [cat\n", ("t.yaml", "damaged")),
        ("t.yaml", "names: {a: cat}\n", ("t.yaml", "names")),
        ("t.yaml", "nc: 3\nnames: [cat]\n", ("nc: 3", "1 names")),
        ("t.yaml", "names: [cat]\n", ("labels",)),
        ("t.json", "[" * 100_000, ("t.json", "nested")),
        ("t.json", '[{"image": "a.png", "label": []}]', ("JSON-MIN",)),
        ("t.json", '{"shapes": []}', ("labelme", "folder")),
        ("t.json", "{}", ("list of images",)),
        ("t.xml", "<annotations></annotations>", ("lists no pictures",)),
        ("t.json", '{"images": [], "annotations": [], "categories": []}', ("lists no pictures",)),
        ("t.csv", "image,mask,class\na\0,b,c\n", ("zero bytes",)),
        ("t.yaml", "a: &a [1]\nnames: [*a, *a]\n", ("aliases",)),
        ("t.yaml", "names: [cat, [a, b]]\n", ("class 1", "a list of 2")),
        ("t.csv", "image,mask,mask\n", ("mask, mask", "twice")),
        ("t.txt", "", (".csv", "CVAT", "YOLO")),
        ("t.csv", "image,mask\na.png,b.png\n", ("column class", "classes.txt")),
    ],
)
def test_other_files_are_refused_in_one_line(root, capsys, name, content, words):
    (root / name).write_text(content)
    assert _prepare(root, name) == 1
    told(capsys.readouterr().err, *words)


def test_entities_are_not_expanded(root, capsys):
    nested = "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
    bomb = f"<!DOCTYPE x [<!ENTITY a0 'ha'>{nested}]><annotations>&a9;</annotations>"
    for encoding in ("utf-8", "utf-16"):
        (root / "t.xml").write_bytes(bomb.encode(encoding))
        assert _prepare(root, "t.xml") == 1
        told(capsys.readouterr().err, "t.xml", "DOCTYPE")


def test_a_label_that_classes_txt_does_not_name_is_named(root, capsys):
    (root / "classes.txt").write_text("dog\n")
    assert _prepare(root, _coco(root, _annotation())) == 1
    told(capsys.readouterr().err, "'cat'", "dog")
    (root / "classes.txt").write_text("dog\nbig  dog\nbig dog\n")
    assert _prepare(root, _coco(root, _annotation())) == 1
    told(capsys.readouterr().err, "classes.txt", "'big dog'", "twice")
    (root / "classes.txt").write_text("dog\n")
    unused = _coco(root, _annotation(category=2))  # cat has no object
    assert _prepare(root, unused) == 0
    np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25)))


# The rest -------------------------------------------------------------------------------------


def test_a_sheet_shows_pictures_with_their_masks(root, capsys):
    for i in range(30):
        _picture(root, f"sub/日 {i}.png", (10 + i, 60))
    entries = [_image(i, f"sub/日 {i}.png", 10 + i) for i in range(30)]
    low = [0, 30, 9, 30, 9, 60, 0, 60]
    source = _coco(root, *(_annotation(i, i, 2, (low,)) for i in range(30)), images=entries)
    for name in "ab":
        (root / f"images/{name}.png").unlink()
    assert _prepare(root, source, "--preview", root / "new/sheet.png") == 0
    assert "shows 24 of 30 pictures" in capsys.readouterr().out
    sheet = images.read(root / "new/sheet.png")
    assert sheet.shape[1] == 6 * 240
    first = sheet[2:238, 2:42].astype(int)
    assert abs(first[40, 15] - 128).max() <= 1  # the picture's gray
    assert np.ptp(first[200, 15]) > 60  # in a colour
    assert _prepare(root, source, "--preview", root / "sheet.jpg") == 1
    told(capsys.readouterr().err, "--preview", ".png")


@pytest.mark.parametrize(
    ("novel", "classes"),
    [
        ('"building, edifice"', (2,)),
        ('sky,"building, edifice"', (2, 3)),
        ('wall, "sky"', (1, 3)),
        ('12" pipe', (4,)),
    ],
)
def test_class_names_with_commas_are_quoted(novel, classes):
    names = ("wall", "building, edifice", "sky", '12" pipe')
    assert fold_rule(names, novel, "x").novel[0] == classes
    with pytest.raises(UserError) as error:
        fold_rule(names, "building, edifice", "x")
    told(error, "'building, edifice'", "double quotes")


def test_benchmarks_are_checked_before_c_code_sees_them(tmp_path):
    """The published file is trusted in what it means, but not in its numbers."""
    from prosam_jax.data.folds import COCO_20I
    from prosam_jax.data.prepare.coco_masks import write_mask

    held = {
        "images": [_image(1, "a.jpg")],
        "categories": [{"id": i, "name": name} for i, name in enumerate(COCO_20I.class_names, 1)],
        "annotations": [_annotation(segmentation=([5, float("nan"), 25, 5, 25, 25],))],
    }
    path = tmp_path / "t.json"
    path.write_text(json.dumps(held))
    (image,) = read_annotations(path)
    with pytest.raises(UserError) as error:
        write_mask((tmp_path / "a.png", image))
    told(error, "a.jpg", "nan")
    held["annotations"][0]["iscrowd"] = "x"
    path.write_text(json.dumps(held))
    with pytest.raises(UserError) as error:
        read_annotations(path)
    told(error, "iscrowd", "'x'")


@pytest.mark.parametrize("name", ["images", "masks"])
def test_a_preview_replaces_no_picture_and_no_mask(root, capsys, name):
    assert _prepare(root, _coco(root, _annotation()), "--preview", root / name / "a.png") == 1
    told(capsys.readouterr().err, "--preview", root / name)
    assert not (root / "masks").exists() and images.size(root / "images/a.png") == (WIDTH, HEIGHT)


def test_a_mask_of_before_does_not_stay_where_an_annotation_is_refused(root, capsys):
    both = _annotation(), _annotation(2, image=2)
    assert _prepare(root, _coco(root, *both)) == 0
    before = _mask(root, "b")
    wrong = _annotation(2, image=2, segmentation=([0, 0, 900, 0, 900, 900],))
    assert _prepare(root, _coco(root, both[0], wrong)) == 1
    assert "set aside as NAME.png.before: b.png" in capsys.readouterr().out
    assert (_mask(root) == 1).any() and not (root / "masks/b.png").exists()
    np.testing.assert_array_equal(np.asarray(Image.open(root / "masks/b.png.before")), before)
    assert cli.main(["prepare", "folder", "--root", str(root), "--check"]) == 1
    assert _prepare(root, _coco(root, *both)) == 0
    np.testing.assert_array_equal(_mask(root, "b"), before)


def test_a_source_of_which_nothing_can_be_drawn_changes_nothing(root, capsys):
    assert _prepare(root, _coco(root, _annotation(), _annotation(2, image=2))) == 0
    before = {x: x.read_bytes() for x in root.glob("*/*.png")}
    large = [_image(1, "a.png", 2 * WIDTH), _image(2, "b.png", 2 * WIDTH)]
    assert _prepare(root, _coco(root, _annotation(), images=large)) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert {x: x.read_bytes() for x in root.glob("*/*")} == before


def test_a_full_disk_is_told_with_the_mask(root, capsys, monkeypatch):
    def save(self, path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    assert _prepare(root, _coco(root, _annotation())) == 1
    told(capsys.readouterr().err, "No space left", root / "masks/a.png")
    assert sorted(x.name for x in root.iterdir()) == ["images", "t.json"]


def test_a_mask_set_aside_replaces_no_other(root):
    good, wrong = _annotation(), _annotation(2, image=2, segmentation=([0, 0, 9, 9],))
    (root / "masks").mkdir()
    for number in (1, 2):
        Image.new("L", (WIDTH, HEIGHT), number).save(root / "masks/b.png")
        assert _prepare(root, _coco(root, good, wrong)) == 1
    first, second = (root / f"masks/b.png.before{end}" for end in ("", ".before"))
    assert (images.read_labels(first) == 1).all() and (images.read_labels(second) == 2).all()


@pytest.mark.parametrize("annotated", ["a", "b", "ab"])
def test_pictures_that_would_share_a_mask_get_none(root, capsys, annotated):
    _picture(root, "b.jpg")
    found = [_annotation(i, image=i) for i, name in enumerate("ab", 1) if name in annotated]
    jpeg = _annotation(3, 3, 2, (OTHER,))
    listed = [_image(1, "a.png"), _image(2, "b.png"), _image(3, "b.jpg")]
    assert _prepare(root, _coco(root, *found, jpeg, images=listed)) == 1
    assert "has the picture 'b.png', and 'b.jpg' would get the same mask" in capsys.readouterr().out
    assert not (root / "masks/b.png").exists()
    if "a" in annotated:
        np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25)))


def test_a_raw_picture_beside_its_jpeg_takes_no_labels_from_it(root):
    _picture(root, "c.JPG")
    (root / "images/c.NEF").write_bytes(b"raw")
    _labelme(root, ("cat", "rectangle", [[5, 5], [24, 24]]), name="c")
    assert _prepare(root, "json") == 1  # a.png and b.png have no masks
    np.testing.assert_array_equal(_mask(root, "c"), _boxes((1, 5, 5, 25, 25)))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("t.yaml", "names: {0: cat, 0: dog}\n", "has 0 twice"),
        ("t.yaml", "names: [cat]\nnames: [dog]\n", "has names twice"),
        ("t.yaml", "names: [cat]\nkpt_shape: [3, 2]\n", "kpt_shape"),
        ("t.csv", "image,mask,class\na.png,m.png,building, edifice\n", "line 2"),
    ],
)
def test_a_source_that_can_be_read_in_two_ways_is_refused(root, capsys, name, content, named):
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.1 0.1 0.4 0.1 0.4 0.4\n")
    Image.new("L", (WIDTH, HEIGHT), 255).save(root / "m.png")
    (root / name).write_text(content)
    assert _prepare(root, name) == 1
    told(capsys.readouterr().err, root / name, named)
    assert not (root / "masks").exists()


def test_a_corner_of_three_numbers_is_refused(root, capsys):
    (root / "t.xml").write_text(
        f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="dog" points="5,5,1;25,5,1;25,25,1;5,25,1"/></image></annotations>'
    )
    _prepare(root, "t.xml")
    assert "'5,5,1', which is not x,y" in capsys.readouterr().out
    assert not (root / "masks/a.png").exists()


# What a preparation tells ---------------------------------------------------------------------


def _table(root, rows, masks, header="image,mask,class"):
    """A table and its masks, by name."""
    for name, mask in masks.items():
        Image.fromarray(mask).save(root / name)
    (root / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return "t.csv"


def _yolo(root, names="[cat, dog]", **labels):
    (root / "labels").mkdir(exist_ok=True)
    (root / "t.yaml").write_text(f"names: {names}\n")
    for name, text in labels.items():
        (root / f"labels/{name}.txt").write_text(text)
    return "t.yaml"


def _cvat(root, shapes):
    image = f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    (root / "t.xml").write_text(f"<annotations>{image}</annotations>")
    return "t.xml"


def _label_studio(root, **changes):
    result = {
        "type": "polygonlabels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["cat"]},
    }
    tasks = [{"data": {"image": "a.png"}, "annotations": [{"result": [result | changes]}]}]
    (root / "t.json").write_text(json.dumps(tasks))
    return "t.json"


@pytest.mark.parametrize(
    ("other", "together"),
    [
        ("/data/upload/3/0a1b2c3d-a.png", True),
        ("https://x.org/data/upload/3/0a1b2c3d-a.png?key=2", True),
        ("https://x.org/data/upload/3/9f8e7d6c-a.png", False),
    ],
)
def test_uploads_of_one_name_are_not_taken_for_one_picture(root, capsys, other, together):
    """Label Studio tells uploads of one name apart by what it puts before the name."""
    _label_studio(root)
    (task,) = json.loads((root / "t.json").read_text())
    first = other.replace("key=2", "key=1").replace("9f8e7d6c", "0a1b2c3d")
    tasks = [task | {"id": i, "data": {"image": x}} for i, x in enumerate((first, other))]
    (root / "t.json").write_text(json.dumps(tasks))
    assert _prepare(root, "t.json") == 1  # b.png has no mask
    said = capsys.readouterr().out
    if together:
        assert "task 0 and task 1 are both a.png: drawn together" in said
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        inside = (x < 40) & (y > 6) & ((y - 6) / 24 < (x - 8) / 32)
        assert (_mask(root) != inside).sum() <= 40  # of 384, on the rim
    else:
        assert f"task 1 is of {other}, and another task of {first}, both of the name a.png" in said
        assert not (root / "masks").exists()


def test_a_table_of_objects_is_summed_up_like_outlines(root, capsys):
    masks = {
        "small.png": _boxes((255, 5, 5, 8, 8)),
        "black.png": _boxes(),
        "all.png": _boxes((255, 0, 0, WIDTH, 50)),
        "mid.png": _boxes((255, 60, 40, 70, 50)),
    }
    rows = ["a.png,small.png,cat", "a.png,black.png,dog", "", "a.png,all.png,dog"]
    rows += ["a.png,mid.png,ignore", "b.png,mid.png,cat"]
    assert _prepare(root, _table(root, rows, masks)) == 0
    np.testing.assert_array_equal(_mask(root), _boxes((2, 0, 0, WIDTH, 50), (255, 60, 40, 70, 50)))
    table = root / "t.csv"
    assert capsys.readouterr().out.splitlines()[:4] == [
        "objects: 2 of cat, 1 of dog; background: none; ignored: 1 of ignore; crowds: 0; "
        f"smallest: 9 pixels ({table}, line 2), largest: 4,000 ({table}, line 5)",
        f"objects of fewer than 10 pixels: 1, such as {table}, line 2",
        f"masks that show no object, all black: 1, such as {root / 'black.png'} ({table}, line 3)",
        "objects that later ones cover completely: 1",
    ]


def test_a_table_of_class_numbers_is_summed_up_by_number(root, capsys):
    masks = {"m.png": _boxes((1, 0, 0, 10, 10), (2, 0, 10, 20, 20), (255, 0, 50, 4, 54))}
    masks |= {"n.png": _boxes((2, 0, 0, 20, 20), (255, 70, 50, 80, 60))}
    (root / "classes.txt").write_text("cat\n255\n")
    rows = ["a.png,m.png", "a.png,n.png", "b.png,m.png"]
    assert _prepare(root, _table(root, rows, masks, "image,mask")) == 0
    expected = _boxes((2, 0, 0, 20, 20), (255, 0, 50, 4, 54), (255, 70, 50, 80, 60))
    np.testing.assert_array_equal(_mask(root), expected)
    np.testing.assert_array_equal(_mask(root, "b"), masks["m.png"])
    said = capsys.readouterr().out
    assert "objects: 3 of 255, 2 of cat; background: none; ignored: 3 of 255; crowds: 0" in said
    assert "cover completely: 2" in said  # the first mask's two classes, by the second's class 2


@pytest.mark.parametrize(
    ("header", "mask", "words"),
    [
        ("image,mask,class", np.full((HEIGHT, WIDTH + 1), 255, np.uint8), ("81 x 60", "80 x 60")),
        ("image,mask", _boxes((3, 0, 0, 9, 9)), ("number 3", "classes 1-2")),
        ("image,mask", _boxes((255, 0, 0, 9, 9)), ("only 0 and 255", "CSV")),
    ],
)
def test_a_mask_of_a_table_that_does_not_fit_is_not_written(root, capsys, header, mask, words):
    (root / "classes.txt").write_text("cat\ndog\n")
    rows = ["a.png,m.png,cat", "b.png,n.png,cat"]
    rows = [row.removesuffix(",cat" * ("class" not in header)) for row in rows]
    source = _table(root, rows, {"m.png": mask, "n.png": _boxes((1, 5, 5, 25, 25))}, header)
    assert _prepare(root, source) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert str(root / "m.png") in line and all(word in line for word in words)
    assert sorted(x.name for x in (root / "masks").iterdir()) == ["b.png"]


@pytest.mark.parametrize(
    ("said", "other", "expected"),
    [
        ("..\\images\\a.jpg", "", ""),  # of another tool's copy, written on Windows
        ("A.PNG", "", ""),
        (None, "", ""),
        ("old/IMG_7.jpg", "imagePath names no picture beside theirs", "a.json (IMG_7.jpg)"),
        ("..\\images\\b.jpg", "another picture, b.png", "a.json is named after a.png"),
    ],
)
def test_the_name_inside_a_file_of_labelme(root, capsys, said, other, expected):
    source = _labelme(root, ("cat", "rectangle", [[5, 5], [24, 24]]))
    _labelme(root, ("cat", "rectangle", [[5, 5], [24, 24]]), name="b")
    path = root / "json/a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"imagePath": said}))
    is_refused = other.startswith("another")
    assert _prepare(root, source) == is_refused
    lines = [x for x in capsys.readouterr().out.splitlines() if "imagePath" in x]
    assert len(lines) == bool(other)
    assert all(other in line and expected in line for line in lines)
    assert (root / "masks/a.png").exists() != is_refused


def test_an_id_that_is_there_twice(root, capsys):
    """A copy is drawn once; merged files have different annotations of one id."""
    given = [_annotation(5), _annotation("5"), _annotation(5), _annotation(5, 2, 2)]
    assert _prepare(root, _coco(root, *given)) == 0
    said = capsys.readouterr().out
    assert "copies of annotation 5: drawn once" in said
    assert "different annotations of one id, 5, 5: all drawn" in said
    assert "objects: 2 of cat, 1 of dog" in said
    np.testing.assert_array_equal(_mask(root, "b"), _boxes((2, 5, 5, 25, 25)))


def test_yolo_names_and_pictures_without_files(root, capsys):
    _picture(root, "c.png")
    square = "2 0.0625 0.0833333 0.3125 0.0833333 0.3125 0.4166667 0.0625 0.4166667\n"
    assert _prepare(root, _yolo(root, "[cat, cat, dog]", a=square)) == 0
    said = capsys.readouterr().out
    assert "classes 0 and 1 are both 'cat': one class" in said
    without = f"pictures without a .txt file in {root / 'labels'}, taken for pictures without"
    assert f"{without} objects unless they have a mask: 2, such as b.png" in said
    np.testing.assert_array_equal(_mask(root), _boxes((2, 5, 5, 25, 25)))
    assert not _mask(root, "b").any() and not _mask(root, "c").any()
    by_hand = _boxes((1, 0, 0, 9, 9))
    Image.fromarray(by_hand).save(root / "masks/b.png")
    assert _prepare(root, "t.yaml", "--force") == 0
    np.testing.assert_array_equal(_mask(root, "b"), by_hand)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1_0 .1 .1 .5 .1 .5 .5", "'1_0', which is no whole number"),
        ("1 .1 .1 .5 0.1_1 .5 .5", "'0.1_1', which is no number"),
        ("1 .1 .1 .5 nan .5 .5", "'nan', which is no number"),
        ("\u0661 .1 .1 .5 .1 .5 .5", "'\u0661', which is no whole number"),
        ("9 .1 .1 .5 .1 .5 .5", "the class 9, which has no name"),
        (f"1 {'x' * 99} .1", f"'{'x' * 57}'..., which is no number"),
    ],
)
def test_a_bad_line_of_yolo_is_named(root, capsys, line, words):
    names = f"[{', '.join(f'c{i}' for i in range(9))}]"
    assert _prepare(root, _yolo(root, names, a=line, b="1 .1 .1 .5 .1 .5 .5")) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{root / 'labels/a.txt'}, line 1 has {words}")


def test_numbers_of_yolo_may_have_exponents(root):
    lines = "0 6.25e-2 .0833333 +.3125 8.33333E-02 0.3125 .4166667 0.0625 .4166667"
    assert _prepare(root, _yolo(root, a=lines)) == 0
    np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25)))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ('ellipse label="cat" cx="40" cy="30" rx="-20" ry="10"', "has the radii -20 and 10"),
        ('ellipse label="cat" cx="40" cy="30" rx="20"', "has the radii 20 and 0"),
        ('ellipse label="cat" cx="4_0" cy="30" rx="2" ry="2"', "'4_0', which is no number"),
        ('polygon label="cat" points="5,5;9,5;9,9" z_order="1.5"', "'1.5', which is no whole"),
    ],
)
def test_a_bad_number_of_cvat_is_named(root, capsys, shape, words):
    _prepare(root, _cvat(root, f"<{shape}/>"))
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"{root / 't.xml'}: {shape.split()[0]} 1 on a.png ") and words in said


def test_z_order_may_be_negative(root):
    shapes = '<polygon label="cat" points="5,5;25,5;25,25;5,25" z_order="-1"/>'
    over = shapes.replace("-1", "-2").replace("cat", "dog").replace("25", "30")
    assert _prepare(root, _cvat(root, shapes + over)) == 1  # b.png has no mask
    np.testing.assert_array_equal(_mask(root), _boxes((2, 5, 5, 30, 30), (1, 5, 5, 25, 25)))


@pytest.mark.parametrize("page", [0, 1])
def test_label_studio_objects_of_a_further_page_are_refused(root, capsys, page):
    (root / "images/b.png").unlink()
    assert _prepare(root, _label_studio(root, item_index=page)) == page
    assert ("has item_index 1, a further page" in capsys.readouterr().out) == page
    assert (root / "masks/a.png").exists() != page


@pytest.mark.parametrize(
    ("orientation", "size", "stated", "is_told"),
    [
        (1, (WIDTH, HEIGHT), True, False),
        (3, (WIDTH, HEIGHT), True, True),
        (2, (WIDTH, HEIGHT), True, True),
        (6, (WIDTH, WIDTH), True, True),
        (6, (WIDTH, HEIGHT), True, False),
        (6, (WIDTH, HEIGHT), False, True),
    ],
)
@pytest.mark.parametrize("tool", ["coco", "table"])
def test_a_frame_that_no_size_tells_is_told(root, capsys, orientation, size, stated, is_told, tool):
    exif = Image.Exif()
    exif[0x0112] = orientation
    entries = []
    for i, name in enumerate("ab"):
        (root / f"images/{name}.png").unlink()
        _picture(root, f"{name}.jpg", size, exif=exif)
        entries.append({"id": i, "file_name": f"{name}.jpg"})
        entries[-1] |= dict(zip(("width", "height"), size, strict=True)) if stated else {}
    if tool == "coco":
        source = _coco(root, _annotation(image=0), _annotation(2, 1), images=entries)
    else:
        turned = size[::-1] if orientation == 6 and not stated else size
        mask = _boxes((255, 5, 5, 25, 25), size=turned)
        source = _table(root, [f"{x}.jpg,m.png,cat" for x in "ab"], {"m.png": mask})
        is_told = is_told and stated  # the mask's own size tells
    assert _prepare(root, source) == 0
    said = [x for x in capsys.readouterr().out.splitlines() if "EXIF" in x]
    assert len(said) == is_told
    assert all("after that: 2, such as a.jpg; outlines are taken for those" in x for x in said)


def _without_objects(root, tool):
    if tool == "coco":
        return _coco(root)
    if tool == "yolo":
        return _yolo(root, a="")
    if tool == "table":
        return _table(root, ["a.png,m.png,cat"], {"m.png": _boxes()})
    return _labelme(root, ("background", "rectangle", [[5, 5], [24, 24]]))


@pytest.mark.parametrize("tool", ["coco", "yolo", "table", "labelme"])
def test_a_source_without_objects_writes_nothing(root, capsys, tool):
    source = _without_objects(root, tool)
    before = sorted(x.name for x in root.iterdir())
    assert _prepare(root, source) == 1
    told(capsys.readouterr().err, root / source, "has no objects, so nothing was written")
    assert sorted(x.name for x in root.iterdir()) == before


@pytest.mark.parametrize("wrong", [{"segmentation": [[0, 0, 900, 0, 9, 9]]}, {"iscrowd": 1}])
def test_a_source_whose_objects_are_all_refused_writes_nothing(root, capsys, wrong):
    source = _coco(root, _annotation() | wrong, _annotation(2, 2) | wrong)
    assert _prepare(root, source) == 1
    said = capsys.readouterr()
    told(said.err, root / source, "no objects that can be drawn (bad files: 2)")
    assert ("such as a.png; if your tool" in said.out) == ("iscrowd" in wrong)
    assert sorted(x.name for x in root.iterdir()) == ["images", source]


def test_pictures_with_nothing_but_crowds_are_told_in_one_line(root, capsys):
    _picture(root, "c.png")
    given = [_annotation(), *(_annotation(i, i, iscrowd=1) for i in (2, 3))]
    entries = [_image(i, f"{name}.png") for i, name in enumerate("abc", 1)]
    assert _prepare(root, _coco(root, *given, images=entries)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "pictures: 1, bad files: 2" in lines[2]
    assert (
        "ignored (255): 2; pictures with nothing else, which get no mask: 2, such as b.png; "
        in (lines[1])
    )
    assert "--crowds-as-objects" in lines[1]


def test_pictures_with_nothing_but_ignored_objects_get_no_mask(root, capsys):
    source = _labelme(root, ("cat", "rectangle", [[5, 5], [24, 24]]))
    _labelme(root, ("ignore", "rectangle", [[5, 5], [24, 24]]), name="b")
    assert _prepare(root, source) == 1
    said = capsys.readouterr().out
    assert "ignored objects (255): pictures with nothing else, which get no mask: 1, such as b" in (
        said
    )
    assert "contains only" not in said and "has no mask" not in said


def test_names_that_differ_in_capitals_only(root, capsys):
    box = [[5, 5], [24, 24]]
    source = _labelme(root, *((x, "rectangle", box) for x in ("Cat", "cat", "dog")))
    _labelme(root, ("CAT", "rectangle", box), name="b")
    assert _prepare(root, source) == 0
    assert "the classes CAT, Cat, cat differ in capitals only" in capsys.readouterr().out
    assert (root / "classes.txt").read_text() == "CAT\nCat\ncat\ndog\n"
    (root / "classes.txt").write_text("cat\nhorse\n")
    assert _prepare(root, source, "--force") == 1
    error = capsys.readouterr().err
    told(error, "'CAT'", root / "classes.txt", "nearest: cat;", "add it there, at the end")


def test_a_class_that_no_mask_shows_is_told(root, capsys):
    (root / "classes.txt").write_text("cat\nghost\n")
    assert _prepare(root, _coco(root, _annotation(), _annotation(2, 2))) == 0
    said = capsys.readouterr().out
    assert "2 of cat, none of ghost (left out of training; annotate some, or correct" in said
    assert f"{root / 'classes.txt'}, whose order must stay" in said


def test_a_packed_export_is_to_be_unpacked(root, capsys):
    (root / "t.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert _prepare(root, "t.zip") == 1
    told(capsys.readouterr().err, root / "t.zip", "unpack it")


def test_a_sheet_tells_classes_apart(tmp_path):
    """Inside a class the picture is gray in the class's colour, and its rim has that colour."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    side = preview._SIDE - 4  # no scaling
    Image.new("RGB", (side, side), (0, 240, 0)).save(tmp_path / "images/a.png")
    boxes = [(c, 20 * c, 10, 20 * c + 20, 90) for c in range(1, 8)]
    Image.fromarray(_boxes(*boxes, size=(side, side))).save(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text("".join(f"c{i}\n" for i in range(1, 8)))
    preview.write(tmp_path / "s.png", find_folder(str(tmp_path)), ["a.png"])
    sheet = images.read(tmp_path / "s.png")
    colours = [preview.colour(c) for c in range(1, 255)]
    assert len({*colours, preview.colour(255)}) == 255
    for c in range(1, 8):
        colour = np.array(colours[c - 1], float)
        np.testing.assert_array_equal(sheet[2 + 10, 2 + 20 * c + 5], colour)
        assert abs(sheet[2 + 50, 2 + 20 * c + 10] - (colour + 80) / 2).max() <= 0.5
    np.testing.assert_array_equal(sheet[2 + 5, 2 + 5], (0, 240, 0))
    names = sheet[side + 3 + preview._LINE :]
    shown = {tuple(x) for x in names[:, 2:11].reshape(-1, 3).tolist()} - {(0, 0, 0)}
    assert shown == set(colours[: preview._NAMED])  # and the line "and 2 more" has no colour
    assert names[preview._NAMED * preview._LINE :, 15:].max() > 128


# Several processes ----------------------------------------------------------------------------


def test_a_second_preparation_of_a_folder_is_refused(root, capsys):
    source = _coco(root, _annotation(), _annotation(2, 2))
    with locked(root / ".prepare.lock", ""):
        assert _prepare(root, source) == 1
    told(capsys.readouterr().err, root, "is being prepared by another process")
    assert sorted(x.name for x in root.iterdir()) == ["images", source]
    assert _prepare(root, source) == 0


KILLED = """
import os, pathlib, signal, sys
from prosam_jax.data.prepare import folder

def stop(labels):
    os.kill(os.getpid(), signal.SIGKILL)

root = pathlib.Path(sys.argv[1])
folder.is_ignored = stop
folder.make_masks(root, root / sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signal")
def test_a_killed_preparation_leaves_nothing_for_good(root):
    source = _coco(root, _annotation(), _annotation(2, 2))
    done = subprocess.run([sys.executable, "-c", KILLED, root, source], check=False)
    assert done.returncode == -signal.SIGKILL
    left = sorted(x.name[:7] for x in root.iterdir() if x.name.startswith("."))
    assert left == [".masks-", ".prepar"]
    assert _prepare(root, source) == 0
    assert not [x.name for x in root.iterdir() if x.name.startswith(".")]
    np.testing.assert_array_equal(_mask(root), _boxes((1, 5, 5, 25, 25)))
