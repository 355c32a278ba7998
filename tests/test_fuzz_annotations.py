"""Any annotation file gives masks or lines: values of valid files replaced, and bytes changed.

FUZZ=100 tries a hundred times as many.
"""

import copy
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prosam_jax.data.datasets.folder import fold_rule
from prosam_jax.data.prepare import folder
from prosam_jax.errors import UserError
from tools.bad_pictures import coco, shape

EXAMPLES = 60 * int(os.environ.get("FUZZ", "1"))
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RUNS = {"size": [30, 40], "counts": [100, 50, 1050]}
TEXT = {"size": [30, 40], "counts": "`0Z1"}
POLYGON = [[0, 0, 9, 0, 9, 9]]

JSONS = {
    "coco": coco(
        annotations=[
            {"id": i, "image_id": 7, "category_id": 3, "iscrowd": i % 2, "segmentation": given}
            for i, given in enumerate((POLYGON, RUNS, TEXT, POLYGON[0]))
        ]
    ),
    "labelme": {
        "imageWidth": 40,
        "imageHeight": 30,
        "shapes": [
            shape(),
            shape(shape_type="rectangle", points=[[1, 1], [5, 5]]),
            shape(shape_type="circle", points=[[9, 9], [9, 5]]),
        ],
    },
    "label_studio": [
        {
            "id": 1,
            "data": {"image": "/data/upload/1/0123abcd-a.png"},
            "annotations": [
                {
                    "result": [
                        {
                            "type": "polygonlabels",
                            "original_width": 40,
                            "original_height": 30,
                            "image_rotation": 0,
                            "value": {
                                "points": [[1, 1], [50, 1], [50, 50]],
                                "polygonlabels": ["cat"],
                            },
                        }
                    ]
                }
            ],
        }
    ],
}
TEXTS = {
    "cvat": "<annotations><meta><task><labels><label><name>cat</name></label></labels></task>"
    "</meta>"
    "<image id='0' name='a.png' width='40' height='30'>"
    "<polygon label='cat' points='1,1;9,1;9,9' z_order='1'/>"
    "<ellipse label='cat' cx='9' cy='9' rx='3' ry='4' rotation='10'/>"
    "<mask label='cat' rle='1,2,1' left='1' top='1' width='2' height='2'/></image></annotations>",
    "yolo": "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0 0 1 0 1 1\n",
    "names": "nc: 2\nnames: {0: cat, 1: 'big dog'}\n",
    "table": "image,mask,class\na.png,parts/a.png,cat\nimages/a.png,parts/a.png,dog\n",
}
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 50),
    st.sampled_from([10**9, -(10**9), 10**18, 10**40, 10**400, 2**31, 2**63]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["a.png", "b.png", "\ud800", "\x00", "\x1b[0m", "7", "cat", "0" * 80, "[", "//[a"]
    ),
    st.sampled_from([[], {}, [[]], [{}], POLYGON, RUNS, TEXT, [1] * 7, [["x"] * 6]]),
)


@pytest.fixture
def root(tmp_path):
    for name in ("images", "parts", "json", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images/a.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "parts/a.png")
    return tmp_path


def _make(root, source):
    """Makes masks; what it writes must be whole and of the classes it names."""
    (root / "classes.txt").unlink(missing_ok=True)
    (root / "masks/a.png").unlink(missing_ok=True)
    try:
        faults = folder.make_masks(root, source, force=True)
    except UserError as error:
        assert "\n" not in str(error)
        assert not (root / "classes.txt").exists() and not (root / "masks/a.png").exists()
        return
    assert all("\n" not in line for line in faults.values())
    if (root / "masks/a.png").exists():
        mask = np.asarray(Image.open(root / "masks/a.png"))
        assert mask.shape == (30, 40)
        names = root / "classes.txt"
        most = len(names.read_text().splitlines()) if names.exists() else 0
        assert ((mask <= most) | (mask == 255)).all()
    else:
        assert faults
    assert not list(root.glob(".masks-*"))


def _places(value, path=()):
    """Paths to all values of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


def _with(value, path, new):
    value = copy.deepcopy(value)
    if not path:
        return new
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize("kind", JSONS)
@QUICK
@given(data=st.data())
def test_any_value_in_json(root, kind, data):
    held = JSONS[kind]
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(_places(held))))
        held = _with(held, path, data.draw(STRANGE))
    source = root / ("json/a.json" if kind == "labelme" else "t.json")
    source.write_text(json.dumps(held))
    _make(root, root / "json" if kind == "labelme" else source)


@pytest.mark.parametrize("kind", [*JSONS, *TEXTS])
@QUICK
@given(data=st.data())
def test_any_bytes(root, kind, data):
    content = (TEXTS[kind] if kind in TEXTS else json.dumps(JSONS[kind])).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 8))
        content = content[:at] + data.draw(st.binary(max_size=8)) + content[at + cut :]
    name = {"labelme": "json/a.json", "cvat": "t.xml", "yolo": "labels/a.txt", "names": "t.yaml"}
    path = root / name.get(kind, "t.csv" if kind == "table" else "t.json")
    if kind == "yolo":
        (root / "t.yaml").write_text(TEXTS["names"])
    elif kind == "names":
        (root / "labels/a.txt").write_text(TEXTS["yolo"])
    path.write_bytes(content)
    source = {"labelme": root / "json", "yolo": root / "t.yaml"}.get(kind, path)
    _make(root, source)


@QUICK
@given(novel=st.text(min_size=1, max_size=12) | st.sampled_from(['"', 'a,"b', '"a"b', "a\nb"]))
def test_any_novel_classes(novel):
    try:
        rule = fold_rule(("a", "b, c", "d"), novel, "x")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert set(rule.novel[0]) <= {1, 2, 3}
