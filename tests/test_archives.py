"""Archives that are not what was published, or that somebody made to do harm."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile

import pytest
from conftest import told

from prosam_jax.data.prepare import archives, pascal
from prosam_jax.data.prepare.archives import Archive
from prosam_jax.data.prepare.pascal import pascal_folder
from prosam_jax.errors import UserError

TOP = "VOCdevkit/VOC2012"
OUTSIDE = [
    "/VOC2012/JPEGImages/x.jpg",
    f"/{TOP}/JPEGImages/x.jpg",
    f"{TOP}/JPEGImages/../../../../x.jpg",
    f"{TOP}/JPEGImages/..",
    "../x.jpg",
    f"{TOP}/JPEGImages/..\\x.jpg",
    "//x.jpg",
]


def _archive(file, content=10_000, **about):
    known = {"size": 5, "unpacked": 5, "url": "http://127.0.0.1:9/x", "by_hand": "by mail"}
    return Archive(name="A", file=file, licence="none", content=content, **known | about)


def _tar(path, *entries):
    """Entries are names with contents, or TarInfo without."""
    with tarfile.open(path, "w") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            name, content = entry
            info = tarfile.TarInfo()
            info.name, info.size = name, len(content)
            tar.addfile(info, io.BytesIO(content))


def _zip(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def _write(path, *entries):
    (_zip if path.suffix == ".zip" else _tar)(path, *entries)


def _unpack(archive, root):
    folder = pascal_folder(root / TOP)
    archives.unpack(archive, root, lambda name: pascal._place(folder, name))


def _fails(archive, root, *words):
    with pytest.raises(UserError) as error:
        _unpack(archive, root)
    told(error, root / archive.file, *words, "delete it and get it again")


def _files(root):
    return sorted(str(x.relative_to(root)) for x in root.rglob("*") if not x.is_dir())


@pytest.mark.parametrize("file", ["a.tar", "a.zip"])
def test_names_are_normalised_before_they_are_compared(tmp_path, file):
    """With two slashes, what is left of the name without its beginning would be absolute."""
    entries = [f"{TOP}//JPEGImages/a.jpg", f"./{TOP}/./JPEGImages/b.jpg", f"{TOP}/other/c.jpg"]
    _write(tmp_path / file, *((name, name.encode()) for name in entries))
    _unpack(_archive(file), tmp_path)
    assert _files(tmp_path / TOP) == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert (tmp_path / TOP / "JPEGImages/a.jpg").read_text() == entries[0]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("file", ["a.tar", "a.zip"])
def test_nothing_is_written_outside(tmp_path, file, name):
    root = tmp_path / "deep/root"
    root.mkdir(parents=True)
    _write(root / file, (name, b"x"))
    _fails(_archive(file), root, "outside of its folder")
    assert _files(tmp_path) == [f"deep/root/{file}"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_passed_over(tmp_path, kind):
    link = tarfile.TarInfo(f"{TOP}/JPEGImages/a.jpg")
    link.type, link.linkname = kind, "/etc/passwd"
    _tar(tmp_path / "a.tar", link, (f"{TOP}/JPEGImages/b.jpg", b"b"))
    _unpack(_archive("a.tar"), tmp_path)
    assert _files(tmp_path / TOP) == ["JPEGImages/b.jpg"]


def test_a_sparse_file_fills_no_disk(tmp_path):
    """It is a terabyte of nothing in a kilobyte, in the header of GNU's tar."""
    info = tarfile.TarInfo(f"{TOP}/JPEGImages/a.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398] = b"%011o\0" % (1 << 30)  # where data begins, of no length
    header[398:410] = b"%011o\0" % 0
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    _fails(_archive("a.tar", content=1 << 32), tmp_path, "4,294,967,296 bytes")
    assert _files(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_name_fills_no_memory(tmp_path, kind):
    """Python reads it as a whole: a gigabyte in a megabyte."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 1 << 30
    (tmp_path / "a.tgz").write_bytes(gzip.compress(info.tobuf() + bytes(1 << 24)))
    _fails(_archive("a.tgz"), tmp_path, "1,073,741,824 bytes")


@pytest.mark.parametrize("file", ["a.tar", "a.zip"])
def test_more_than_the_benchmark_has_is_not_unpacked(tmp_path, file):
    entries = [(f"{TOP}/JPEGImages/{k}.jpg", bytes(4000)) for k in range(4)]
    _write(tmp_path / file, *entries)
    _fails(_archive(file), tmp_path, "10,000 bytes")
    assert len(_files(tmp_path / TOP)) == 2
    _unpack(_archive(file, content=16_000), tmp_path)
    assert len(_files(tmp_path / TOP)) == 4


def test_what_is_passed_over_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("elsewhere")
        info.size = 1 << 24
        tar.addfile(info, io.BytesIO(bytes(1 << 24)))
    _fails(_archive("a.tgz"), tmp_path, "10,000 bytes")


def test_an_archive_that_is_there_is_verified(tmp_path):
    content = b"published"
    good = _archive("a.tar", size=9, sha256=hashlib.sha256(content).hexdigest())
    (tmp_path / "a.tar").write_bytes(content)
    archives.obtain([good], tmp_path, download=False)
    for other in (b"publishee", b"published, and more"):
        (tmp_path / "a.tar").write_bytes(other)
        with pytest.raises(UserError) as error:
            archives.obtain([good], tmp_path, download=False)
        told(error, tmp_path / "a.tar", "delete it")


@pytest.mark.parametrize(
    ("content", "word"), [(b"<!DOCTYPE html>", "web page"), (b"", "empty")], ids=str
)
def test_an_archive_without_a_checksum_is_no_web_page(tmp_path, content, word):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(UserError) as error:
        archives.obtain([_archive("a.tgz")], tmp_path, download=False)
    told(error, tmp_path / "a.tgz", word)


@pytest.mark.parametrize("file", ["a.tar", "a.tgz", "a.zip"])
def test_damaged_archives_are_named(tmp_path, file):
    """Each of many bytes inverted: a result or one line, and nothing outside."""
    root = tmp_path / "root"
    root.mkdir()
    path = root / file
    entries = [(f"{TOP}/JPEGImages/{k}.jpg", os.urandom(300)) for k in range(3)]
    _write(path, *entries)
    if file == "a.tgz":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tmp_path, "x")
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        path.write_bytes(broken)
        try:
            _unpack(_archive(file), root)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 5
    assert {x.name for x in tmp_path.iterdir()} == {"root"}
