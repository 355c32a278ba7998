import contextlib
import dataclasses
import gzip
import hashlib
import io
import shutil
import tarfile
import zlib

import fake_archives
import numpy as np
import pytest
from conftest import assert_lines, told
from fake_archives import SBD, VOC_TRAIN, VOC_VAL
from fake_voc import write_voc
from PIL import Image

from prosam_jax import atomic, cli
from prosam_jax.data.datasets.pascal import find_folder
from prosam_jax.data.prepare import archives
from prosam_jax.data.prepare import pascal as prepare_pascal

POOL = sorted({*VOC_TRAIN, *SBD})
BOMB = zlib.compress(bytes(1 << 26))
FILES = ("VOCtrainval_11-May-2012.tar", "benchmark.tgz", "train_noval.txt")


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Archives in `tmp_path/site`, which a server serves; the masks of VOC and of SBD."""
    site = tmp_path / "site"
    site.mkdir()
    masks = fake_archives.write_pascal(site)
    with fake_archives.serving(site) as (address, asked):
        for name in ("VOC", "SBD", "POOL"):
            archive = getattr(prepare_pascal, name)
            content = (site / archive.file).read_bytes()
            known = hashlib.sha256(content).hexdigest() if archive.sha256 else ""
            small = dataclasses.replace(
                archive,
                url=f"{address}/{archive.file}",
                size=len(content),
                unpacked=1000,
                content=10 * len(content),
                sha256=known,
            )
            monkeypatch.setattr(prepare_pascal, name, small)
        monkeypatch.setattr(prepare_pascal, "POOL_IDS", len(SBD))
        yield *masks, asked


def _main(capsys, root, *flags):
    status = cli.main(["prepare", "pascal", "--root", str(root), *flags])
    return status, *capsys.readouterr()


def _failure(capsys, root, *flags):
    status, out, error = _main(capsys, root, *flags)
    assert (status, out) == (1, "")
    return error


def _assert_complete(folder, own, sbd):
    assert folder.ids("train_aug", "") == POOL
    assert folder.ids("val", "") == list(VOC_VAL)
    for image_id in {*POOL, *VOC_VAL}:
        wanted = own.get(image_id, sbd.get(image_id))
        np.testing.assert_array_equal(folder.labels(image_id), wanted)
    assert not list(folder.path.rglob("*.part"))


def test_pascal_is_made_of_downloads_once(tmp_path, capsys, masks):
    own, sbd, asked = masks
    root = tmp_path / "new"
    status, out, _ = _main(capsys, root, "--download")
    assert status == 0
    assert sorted(asked) == sorted(f"/{name}" for name in FILES)
    folder = find_folder(str(root))
    assert folder.path == root / "VOCdevkit/VOC2012"
    _assert_complete(folder, own, sbd)
    assert not (folder.path / "Annotations").exists()
    assert not folder.mask_path("2012_000009").exists()  # in SBD's archive, but in no pool
    lines = out.splitlines()
    assert_lines(lines[0], (folder.path, "4 in train_aug", "2 in val"))
    assert_lines(lines[-1], (f"prosam train --config pascal --config.data.root={folder.path}",))
    assert [line.partition(":")[0] for line in lines[1:5]] == [
        f"Pascal-5i fold {fold}" for fold in range(4)
    ]
    assert_lines(lines[1], ("NOT the published list", "0 images", "4,208"))
    for name in FILES:
        (root / name).unlink()
    status, again, _ = _main(capsys, root)
    assert status == 0
    nothing, *rest = again.splitlines()
    assert rest == lines and "nothing to do" in nothing


def _stopping(after):
    """Writes `after` files and is interrupted in the next."""
    write, left = atomic.writing, iter(range(after))

    @contextlib.contextmanager
    def writing(target):
        with write(target) as file:
            if next(left, None) is None:
                file.write(b"the begin")
                raise KeyboardInterrupt
            yield file

    return writing


@pytest.mark.parametrize("after", [3, 11, 12, 15, 18])
def test_an_interrupted_preparation_goes_on(tmp_path, capsys, monkeypatch, masks, after):
    """At an image, a list, the pool's list, a mask of VOC's and one of SBD's."""
    own, sbd, _ = masks
    site = tmp_path / "site"
    with monkeypatch.context() as patch:
        stopping = _stopping(after)
        patch.setattr(archives, "writing", stopping)
        patch.setattr(prepare_pascal, "writing", stopping)
        status, out, error = _main(capsys, site)
        assert (status, out) == (130, "") and "the same command" in error
    written = [path for path in (site / "VOCdevkit").rglob("*.*") if path.suffix != ".part"]
    stamps = {path: path.stat().st_mtime_ns for path in written}
    assert len(stamps) == after
    assert _main(capsys, site)[0] == 0
    _assert_complete(find_folder(str(site)), own, sbd)
    assert {path: path.stat().st_mtime_ns for path in written} == stamps


def test_what_is_missing_or_broken_is_told_in_one_line(tmp_path, capsys, monkeypatch, masks):
    root = tmp_path / "root"
    root.mkdir()
    told(_failure(capsys, root), "--download", root, "http", *FILES)
    for name in FILES[::2]:
        shutil.copy(tmp_path / "site" / name, root)
    content = (tmp_path / "site" / FILES[1]).read_bytes()
    (root / FILES[1]).write_bytes(content[: len(content) // 2])
    told(_failure(capsys, root), root / "benchmark.tgz", "damaged")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    told(_failure(capsys, tmp_path / "full", "--download"), tmp_path / "full", "0.0 GB")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (bytes(126) + b"IM" + b"\x0f\0\0\0" + len(BOMB).to_bytes(4, "little") + BOMB, "4,194,304"),
        (bytes(1 << 23), "4,194,304"),
        (b"not looked at", "MATLAB 5"),
    ],
    ids=["a bomb", "a large file", "another file"],
)
def test_a_mask_that_is_none_is_named(tmp_path, capsys, monkeypatch, masks, content, word):
    site = tmp_path / "site"
    name = f"benchmark_RELEASE/dataset/cls/{SBD[1]}.mat"
    with tarfile.open(site / "benchmark.tgz", "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    large = dataclasses.replace(prepare_pascal.SBD, content=1 << 30)
    monkeypatch.setattr(prepare_pascal, "SBD", large)
    told(_failure(capsys, site), site / "benchmark.tgz", name, word, "delete it and get it again")
    assert not list(site.rglob(f"{SBD[1]}.png"))


@pytest.mark.parametrize(
    "content", [b'{"error": "gone"}', "\n".join(SBD[:-1]).encode(), "\n".join(SBD).encode("utf-16")]
)
def test_a_list_that_is_not_whole_is_not_taken_over(tmp_path, capsys, masks, content):
    own, sbd, _ = masks
    site = tmp_path / "site"
    whole = (site / FILES[2]).read_bytes()
    (site / FILES[2]).write_bytes(content)
    for _ in range(2):
        assert str(site / FILES[2]) in _failure(capsys, site)
    (site / FILES[2]).write_bytes(whole)
    assert _main(capsys, site)[0] == 0
    _assert_complete(find_folder(str(site)), own, sbd)


def _with_a_damaged_header(data):
    name = f"benchmark_RELEASE/dataset/cls/{SBD[2]}.mat".encode()
    return data.replace(name, name[::-1])


@pytest.mark.parametrize("damage", [_with_a_damaged_header, lambda data: bytes(10240)])
def test_an_archive_that_lacks_masks_is_named(tmp_path, capsys, masks, damage):
    own, sbd, _ = masks
    site = tmp_path / "site"
    whole = (site / FILES[1]).read_bytes()
    (site / FILES[1]).write_bytes(gzip.compress(damage(gzip.decompress(whole))))
    told(_failure(capsys, site), site / FILES[1], "lacks", "delete it and get it again")
    (site / FILES[1]).write_bytes(whole)
    assert _main(capsys, site)[0] == 0
    _assert_complete(find_folder(str(site)), own, sbd)


def test_a_mask_that_a_power_failure_left_empty_is_made_again(tmp_path, capsys, masks):
    own, sbd, _ = masks
    site = tmp_path / "site"
    assert _main(capsys, site)[0] == 0
    folder = find_folder(str(site))
    folder.mask_path(SBD[1]).write_bytes(b"")
    told(_failure(capsys, site), folder.mask_path(SBD[1]), "prosam prepare", "delete it")
    folder.mask_path(SBD[1]).unlink()
    assert _main(capsys, site)[0] == 0
    _assert_complete(folder, own, sbd)


def test_an_archive_that_is_there_must_be_the_published_one(tmp_path, capsys, masks):
    site = tmp_path / "site"
    with (site / FILES[0]).open("ab") as file:
        file.write(bytes(512))
    told(_failure(capsys, site), site / FILES[0], "bytes", "delete it")
    assert not (site / "VOCdevkit").exists()


def test_a_folder_with_masks_is_taken_as_it_is(tmp_path, capsys):
    voc = write_voc(tmp_path / "VOC2012")
    (voc / "ImageSets/Segmentation/train.txt").write_text("2007_000001")
    before = {path: path.read_bytes() for path in voc.rglob("*.*")}
    status, out, _ = _main(capsys, tmp_path)
    assert status == 0
    assert "holds 12 in train_aug and 12 in val" in out
    after = {path: path.read_bytes() for path in voc.rglob("*.*")}
    assert {path.name for path in set(after) - set(before)} == {"pixel_counts.npz"}
    assert before.items() <= after.items()
    folder = find_folder(str(voc))
    ids = folder.ids("val", "")
    changed = ids[3]
    labels = folder.labels(changed).copy()
    labels[labels > 0] = 0
    Image.fromarray(labels).save(folder.mask_path(changed))
    read = []

    def watch(counts, total):
        read.append(total)
        return counts

    counts = folder.pixel_counts(ids, watch)
    assert read == [1]
    np.testing.assert_array_equal(
        counts, [np.bincount(folder.labels(i).ravel(), minlength=256)[:21] for i in ids]
    )
    (voc / "pixel_counts.npz").write_bytes(b"PK\3\4 and then nothing")
    told(_failure(capsys, tmp_path), voc / "pixel_counts.npz", "delete it")
