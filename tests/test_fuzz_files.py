"""Property tests of the readers of files that come from anyone (`FUZZ=100` tries more)."""

import dataclasses
import io
import json
import shutil
import tarfile
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.io
from flax import nnx
from fuzzing import changed_bytes, changed_values, examples, result_or_line, texts, values
from hypothesis import example, given
from hypothesis import strategies as st

from prosam_jax import share
from prosam_jax.cli import settings as cli_settings
from prosam_jax.cli import weights as cli_weights
from prosam_jax.config import Config, read_config, recorded, replaced, to_dict
from prosam_jax.config.fields import leaves
from prosam_jax.data.prepare import archives, mat_files
from prosam_jax.data.prepare.pascal import sbd_labels
from prosam_jax.errors import UserError, printable
from prosam_jax.weights import files, other_forms, prompt_encoder, registry
from prosam_jax.weights.prompt_encoder import Trained

CONFIG = Config.from_dict({"sam": {"model": "tiny"}, "backbone": {"name": "tiny"}})
KNOWN = {
    "kind": "prompt_encoder",
    "format": files.FORMAT,
    "architecture": "student_t",
    "arrays_sha256": "a" * 64,
    "config": to_dict(CONFIG),
    "merged_channels": 192,
    "frozen": {
        "sam": {"architecture": "tiny", "seed": 3},
        "backbone": {"architecture": "tiny", "arrays_sha256": "b" * 64},
    },
    "version": "0.1.0",
    "benchmark": "pascal",
    "classes": ["bus", "car"],
    "fold": 1,
    "step": 5,
    "results": {
        "miou": 41.5,
        "fb_iou": 50,
        "per_class": {"bus": 40.0, "car": 43.0},
        "episodes": 9,
        "episode_list_sha256": "d" * 64,
        "settings": ["eval.seed: 1 -> 2"],
    },
    "source_name": "a.pt",
    "source_sha256": "e" * 64,
}


DEEP = {}
for _ in range(800):
    DEEP = {"a": DEEP}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "p.safetensors"


def _write(path, text, arrays=None):
    arrays = arrays or {"x": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(arrays, path, metadata={files.NAMESPACE: text})


def _check_metadata(path, text):
    _write(path, text)
    trained = result_or_line(prompt_encoder.read, path)
    result_or_line(cli_weights.identify, path)
    result_or_line(prompt_encoder.check_fold, path, CONFIG)
    result_or_line(prompt_encoder.check_fit, path, CONFIG)
    if trained is None:
        return
    result_or_line(prompt_encoder.check_unseen, path, trained.classes, trained.classes or ())
    assert isinstance(trained, Trained)
    for value in prompt_encoder.facts(trained).values():
        assert value == printable(value)
    assert "\x1b" not in share.describe(path, trained)
    rows = share.card(trained, "u/n").split("|---|---|\n")[1].split("\n\n")[0]
    assert all(row.startswith("| ") and row.endswith(" |") for row in rows.splitlines())
    assert trained.config.cache.dir == trained.config.data.root == ""


@examples(60)
@given(held=changed_values(KNOWN))
def test_metadata_of_a_prompt_encoder(path, held):
    _check_metadata(path, json.dumps(held))


@examples(30)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | changed_bytes(
    json.dumps(KNOWN).encode()).map(lambda x: x.decode(errors="replace")))  # fmt: skip
@example(text="[" * 100_000)
@example(text='{"a":' * 100_000)
@example(text=json.dumps(KNOWN | {"config": DEEP}))
@example(text=json.dumps(KNOWN | {"config": [DEEP]}))
@example(text=json.dumps(KNOWN | {"config": {"seed": [DEEP]}}))
@example(text=json.dumps(KNOWN | {"step": int("9" * 4000)}))
@example(text=json.dumps(KNOWN)[:-1] + ', "step": ' + "9" * 5000 + "}")
def test_metadata_of_any_text(path, text):
    _check_metadata(path, text)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.x = nnx.Param(jnp.zeros((2, 3)))


def _load(path):
    return files.load(Net, path, kind="sam", architecture="tiny", made_by="a command")


def _whole():
    arrays = {"x": np.ones((2, 3), np.float32)}
    facts = {"kind": "sam", "architecture": "tiny", "format": files.FORMAT}
    facts["arrays_sha256"] = files.checksum(arrays)
    return safetensors.numpy.save(arrays, metadata={files.NAMESPACE: json.dumps(facts)})


WHOLE = _whole()


def _check_file(path, content):
    path.write_bytes(content)
    result_or_line(prompt_encoder.read, path)
    result_or_line(cli_weights.identify, path)
    result_or_line(registry.verify, registry.named("sam_vit_b_hf"), path)
    result_or_line(other_forms.check, path)
    loaded = None
    try:
        loaded = _load(path)
    except UserError as error:  # arrays that do not fit are listed
        assert len(str(error)) < 3000
    if loaded is not None:
        assert loaded.x.shape == (2, 3) and loaded.x.dtype == jnp.float32


def test_the_whole_file_is_read(path):
    path.write_bytes(WHOLE)
    np.testing.assert_array_equal(_load(path).x[...], np.ones((2, 3)))


@examples(60)
@given(content=changed_bytes(WHOLE) | st.binary(max_size=300))
def test_weight_files_of_any_bytes(path, content):
    _check_file(path, content)


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@examples(60)
@given(
    header=changed_values({"x": ENTRY, "y": ENTRY, "__metadata__": {files.NAMESPACE: "{}"}}),
    body=st.binary(max_size=48),
)
@example(header={"x": ENTRY | {"shape": [2**40, 2**40]}}, body=bytes(24))
@example(header={"x": ENTRY | {"dtype": "F8_E4M3", "shape": [24]}}, body=bytes(24))
@example(header={"x": ENTRY | {"dtype": "BF16", "shape": [12]}}, body=bytes(24))
@example(header={"x": ENTRY | {"dtype": "F4", "shape": [48]}}, body=bytes(24))
@example(header={"__metadata__": {files.NAMESPACE: '{"kind": ["sam"]}'}}, body=b"")
def test_headers_of_weight_files(path, header, body):
    text = json.dumps(header).encode()
    _check_file(path, len(text).to_bytes(8, "little") + text + body)


@examples(100)
@given(held=changed_values(to_dict(CONFIG)) | values)
@example(held={"seed": 1, "seed.x": 2})
@example(held={"data": {"fold": 1}, "data.fold": 2})
@example(held={"data": {"cueless": "drop", "empty_annotation": "drop"}})
@example(held={"seed": {}})
@example(held={"train": {"learning_rate": 10**400}})
@example(held={"cache": {"dir": "~\0"}})
@example(held={"cache": {"dir": "~\ud800"}})
def test_settings_of_any_value(held):
    for read in (recorded, Config.from_dict):
        if read is recorded or isinstance(held, dict):
            cfg = result_or_line(read, held)
            assert cfg is None or recorded(to_dict(cfg)) == cfg


@examples(50)
@given(name=st.sampled_from(sorted(leaves(Config))) | texts, value=values)
def test_one_setting_of_any_value(name, value):
    cfg = result_or_line(replaced, CONFIG, {name: value})
    assert cfg is None or isinstance(cfg, Config)


@examples(50)
@given(
    arguments=st.lists(
        st.builds(
            "--{}config.{}{}{}".format,
            st.sampled_from(["", "no"]),
            st.sampled_from(sorted(leaves(Config))) | texts,
            st.sampled_from(["=", ""]),
            texts | st.integers().map(str) | st.sampled_from(["nan", "1e999", "9" * 5000]),
        )
        | texts,
        max_size=3,
    )
)
def test_settings_of_any_command_line(arguments):
    def parsed():
        return replaced(CONFIG, cli_settings.parse(cli_settings.split(arguments)[1]))

    cfg = result_or_line(parsed)
    assert cfg is None or isinstance(cfg, Config)


@examples(50)
@given(content=changed_bytes(json.dumps(to_dict(CONFIG)).encode()) | st.binary(max_size=99))
@example(content=b'{"a":' * 900 + b"1" + b"}" * 900)
@example(content=b'{"seed": ' + b"[" * 900 + b"]" * 900 + b"}")
@example(content=b"[" * 100_000)
@example(content=b'{"seed": ' + b"9" * 5000 + b"}")
def test_a_runs_settings_of_any_bytes(path, content):
    file = path.with_name("config.json")
    file.write_bytes(content)
    cfg = result_or_line(read_config, file)
    assert cfg is None or dataclasses.is_dataclass(cfg)


def _archived(file):
    """An archive of two files."""
    held = io.BytesIO()
    if file == "a.zip":
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("in/a", "in/b"):
                archive.writestr(name, b"x" * 50)
        return held.getvalue()
    with tarfile.open(fileobj=held, mode="w:gz" if file == "a.tgz" else "w") as tar:
        for name in ("in/a", "in/" + "b" * 200):  # a long name has a header of its own
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 50, {"comment": "x"}
            tar.addfile(info, io.BytesIO(b"x" * 50))
    return held.getvalue()


@pytest.mark.parametrize("file", ["a.tar", "a.tgz", "a.zip"])
def test_archives_of_any_bytes(path, file):
    about = {"url": "", "by_hand": "", "licence": "", "size": 1, "unpacked": 1}
    archive = archives.Archive(name="A", file=file, content=2000, **about)
    folder = path.parent / "deep" / "root"
    folder.mkdir(parents=True, exist_ok=True)

    @examples(40)
    @given(content=changed_bytes(_archived(file)) | st.binary(max_size=99))
    def unpacked(content):
        (folder / file).write_bytes(content)
        result_or_line(archives.unpack, archive, folder, lambda name: folder / "out" / name[:9])
        made = {x for x in path.parent.rglob("*") if x.is_file() and x != path}
        assert all(folder in x.parents for x in made - {path.with_name("config.json")})
        shutil.rmtree(folder / "out", ignore_errors=True)

    unpacked()


def _mat(compressed):
    file = io.BytesIO()
    held = {"Boundaries": np.zeros((3, 3), object), "Segmentation": np.ones((4, 5), np.uint8)}
    scipy.io.savemat(file, {"GTcls": held}, do_compression=compressed)
    return file.getvalue()


@examples(200)
@given(content=st.one_of(*(changed_bytes(_mat(x)) for x in (True, False))) | st.binary())
def test_masks_of_any_bytes(content):
    """Here the reader's own error is a ValueError, to which the caller adds the file's name."""
    try:
        table = sbd_labels(content)
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error)
        return
    assert table.dtype == np.uint8 and table.ndim == 2 and table.size < mat_files.LARGEST
