"""VOC's, SBD's and COCO's archives in small, of the true layout, and a server for them."""

import contextlib
import functools
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from unittest import mock

import numpy as np
import scipy.io
from PIL import Image

from prosam_jax.data.folds import COCO_20I

SIZE = (48, 64)
VOC_TRAIN, VOC_VAL = ("2007_000001", "2008_000002"), ("2007_000003", "2009_000004")
SBD = ("2008_000002", "2010_000005", "2011_000006")  # the first has a mask of VOC's, too
CATEGORY_IDS = [c + c // 10 for c in range(1, 81)]  # with gaps, as COCO's


def labels(seed, ignored):
    """A mask of a few rectangles of classes 1-20, with or without a rim of 255."""
    rng = np.random.default_rng(seed)
    found = np.zeros(SIZE, np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, 30, 2)
        found[y : y + 15, x : x + 20] = 255 if ignored else 0
        found[y + 2 : y + 13, x + 2 : x + 18] = rng.integers(1, 21)
    return found


def write_pascal(folder):
    """Writes VOC's tar, SBD's tgz and `train_noval.txt`; returns the masks of both by id."""
    own = {i: labels(k, True) for k, i in enumerate(VOC_TRAIN + VOC_VAL)}
    sbd = {i: labels(90 + k, False) for k, i in enumerate(SBD)}
    top = "VOCdevkit/VOC2012"
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar", "w") as tar:
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            info = tarfile.TarInfo(f"{top}/{name}")
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for image_id in {**own, **sbd}:
            _add(tar, f"{top}/Annotations/{image_id}.xml", b"<annotation/>")
            _add(tar, f"{top}/JPEGImages/{image_id}.jpg", _jpeg(int(image_id[-1])))
        for image_id, mask in own.items():
            image = Image.fromarray(mask)
            image.putpalette(bytes(range(256)) * 3)  # turns it into mode P, as VOC's are
            _add(tar, f"{top}/SegmentationClass/{image_id}.png", _encoded(image, "PNG"))
        for name, ids in (("train", VOC_TRAIN), ("val", VOC_VAL)):
            text = "".join(f"{i}\n" for i in ids).encode()
            _add(tar, f"{top}/ImageSets/Segmentation/{name}.txt", text)
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as tar:
        for image_id, mask in {**sbd, "2012_000009": labels(7, False)}.items():
            _add(tar, f"benchmark_RELEASE/dataset/cls/{image_id}.mat", _mat(mask))
            _add(tar, f"benchmark_RELEASE/dataset/inst/{image_id}.mat", b"not looked at")
    (folder / "train_noval.txt").write_text("\r\n".join(SBD))
    return own, sbd


def write_coco(folder, pools):
    """Writes COCO's three zips.

    `pools` are, by "train2014" and "val2014", the objects of each image as
    (class 1-80, crowd, segmentation).
    """
    with zipfile.ZipFile(folder / "annotations_trainval2014.zip", "w") as annotations:
        annotations.writestr("annotations/captions_val2014.json", "{}")
        for pool, images in pools.items():
            table = json.dumps(_table(pool, images))
            annotations.writestr(f"annotations/instances_{pool}.json", table)
            with zipfile.ZipFile(folder / f"{pool}.zip", "w") as file:
                file.writestr(f"{pool}/", b"")
                for number in range(len(images)):
                    file.writestr(f"{pool}/{coco_name(pool, number)}.jpg", _jpeg(number))


def coco_name(pool, number):
    return f"COCO_{pool}_{number:012d}"


def _table(pool, images):
    names = zip(CATEGORY_IDS, COCO_20I.class_names, strict=True)
    objects = [(number, *item) for number, items in enumerate(images) for item in items]
    return {
        "categories": [{"id": i, "name": name} for i, name in names][::-1],
        "images": [
            {"id": n, "file_name": f"{coco_name(pool, n)}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for n in reversed(range(len(images)))
        ],
        "annotations": [
            {"image_id": n, "category_id": CATEGORY_IDS[c - 1], "iscrowd": crowd, "segmentation": s}
            for n, c, crowd, s in objects
        ],
    }


@contextlib.contextmanager
def serving(folder):
    """A file server; yields its address and the list of the paths it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with mock.patch.dict(os.environ, no_proxy="*"):
            yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _jpeg(seed):
    rng = np.random.default_rng(seed)
    return _encoded(Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)), "JPEG")


def _encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _mat(mask):
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[np.zeros(SIZE, np.uint8)] for _ in range(20)]
    present = np.unique(mask[mask > 0]).astype(np.uint8)[:, None]
    held = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": held}, do_compression=True)
    return file.getvalue()
