"""Files that are found where weights were expected, as tools and servers make them."""

import gzip
import json
import zipfile

import pytest
from conftest import told

from prosam_jax import cli
from prosam_jax.errors import UserError, printable
from prosam_jax.weights import other_forms, registry

PARTS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": PARTS[0], "b": PARTS[1]}}
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 18600000\n"

FORMS = {
    "nothing": (b"", ["is empty", "download it again"]),
    "LFS pointer": (LFS, ["Git LFS pointer", "18,600,000 bytes", "git lfs pull"]),
    "index": (json.dumps(INDEX), ["index", "2 files", *PARTS, "safetensors.torch.save_file"]),
    "indented index": (json.dumps(INDEX, indent=2), ["index", "2 files"]),
    "web page": ("\ufeff \n<!DOCTYPE html>", ["web page"]),
    "answer of S3": ('<?xml version="1.0"?><Error><Code>AccessDenied</Code>', ["web page"]),
    "refusal": ('{"error":"Access to model X is restricted."}', ["Access to model X is restr"]),
    "error": ('{"error":{"code":404}}', ["server's answer", "404"]),
    "refusal with control characters": ('{"error":"\\u001b[2J\\nfine"}', [r"\x1b[2J\nfine"]),
    "byte 8 opens a brace": ('{"data":{}}', ["a text"]),
    "index of no names": ('{"weight_map": {"a": [1], "b": null}}', ["index", "0 files"]),
    "nested error": ('{"error":' * 900 + "1" + "}" * 900, ["server's answer"]),
    "nested": ("[" * 100_000, ["a text"]),
    "text": ("Entry not found", ["a text", "'Entry not found'", "download it again"]),
    "long text": ("a" * 5000, ["a text", f"'{'a' * 99}..."]),
    "gzip": (gzip.compress(b"x"), ["gzip", "unpack"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_and_what_mends_it_are_named(tmp_path, form):
    content, words = FORMS[form]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        other_forms.check(path)
    told(error, path, *words)


@pytest.mark.parametrize("start", [b"\x7b\0\0\0\0\0\0\0{", b"\x80\x02", b"PK\3\4", b"\x89HDF"])
def test_other_bytes_are_left_to_those_who_read_them(tmp_path, start):
    path = tmp_path / "x"
    path.write_bytes(start + bytes(100))
    other_forms.check(path)


ZIPS = {
    "around weights": (["weights/", "weights/plain.pth"], ["weights/plain.pth", "unpack"]),
    "TorchScript": (["a/data.pkl", "a/constants.pkl", "a/code/x.py"], ["TorchScript", "torch.jit"]),
    "arrays": (["a.npy", "b.npy"], ["2 files", "a.npy"]),
    "none": ([], ["0 files"]),
}


@pytest.mark.parametrize("case", ZIPS)
def test_zip_archives_are_named(tmp_path, case):
    names, words = ZIPS[case]
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(UserError) as error:
        other_forms.check_zip(path)
    told(error, path, *words)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x[:40], "cut short after 40 bytes"),
        (lambda x: x.replace(b"PK\1\2", b"PK\1\3"), "damaged"),
        (lambda x: x[:-22] + b"PK\6\7" + b"\2" * 16 + x[-22:], "multiple disks"),
    ],
    ids=["cut", "directory", "disks"],
)
def test_damaged_zip_archives_are_named(tmp_path, change, word):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError) as error:
        other_forms.check_zip(path)
    told(error, path, word, "download it again")


def test_what_torch_saves_is_no_other_form(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    other_forms.check_zip(tmp_path / "x.pth")


def test_a_pointer_with_a_published_name_is_named(tmp_path, capsys):
    path = tmp_path / registry.named("sam_vit_b").file
    path.write_text(LFS)
    for command in (["verify", path], ["fetch", "sam_vit_b", "--to", tmp_path]):
        assert cli.main(["weights", *map(str, command)]) == 1
        told(capsys.readouterr().err, path, "Git LFS pointer", "git lfs pull")


def test_a_text_is_no_archive_of_a_benchmark(tmp_path):
    """Where texts are published, too: a list of ids is one."""
    path = tmp_path / "train_noval.txt"
    path.write_text("2008_000002")
    registry.verify(registry.Remote(name="a list", file=path.name, publisher="", licence="",
                                    by_hand=""), path)  # fmt: skip


def test_verify_names_a_file_of_unknown_name(tmp_path, capsys):
    path = tmp_path / "mine.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mine/best.ckpt", b"")
    assert cli.main(["weights", "verify", str(path)]) == 1
    told(capsys.readouterr().err, path, "zip archive around mine/best.ckpt")


def test_text_of_others_steers_no_terminal():
    assert printable("Caf\u00e9 \u732b\u202fa\u00a0b [/b] $x$ \\n") == (
        "Caf\u00e9 \u732b\u202fa\u00a0b [/b] $x$ \\n"
    )
    assert printable("a\x1b[2J\r\n\x9b\u202eb\u2028\udcff\0") == (
        r"a\x1b[2J\r\n\x9b\u202eb\u2028\udcff\x00"
    )
