import argparse
import hashlib
import io
import tarfile
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import told

from prosam_jax.convert import torch_files
from prosam_jax.errors import UserError

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


def _check(checkpoint):
    assert checkpoint.tensors.keys() == STATE.keys()
    for name, x in STATE.items():
        held = checkpoint.tensors[name]
        assert held.dtype == (np.float32 if x.is_floating_point() else np.int64)
        np.testing.assert_array_equal(held, x)


def _fails(path, *words):
    with pytest.raises(UserError) as error:
        torch_files.read(path)
    told(error, path, *words)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


@pytest.mark.parametrize("as_zip", [True, False])
def test_checkpoint_is_read(path, as_zip):
    torch.save(STATE, path, _use_new_zipfile_serialization=as_zip)
    checkpoint = torch_files.read(path)
    _check(checkpoint)
    assert checkpoint.path == path
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.widened == []


def test_safetensors_file_is_read(path):
    safetensors.torch.save_file(STATE, path)
    _check(torch_files.read(path))


@pytest.mark.parametrize("place", [["state_dict"], ["model"], ["model", "state_dict"]])
def test_nested_state_dict_is_found(path, place):
    loaded = STATE
    for key in reversed(place):
        loaded = {"epoch": 3, key: loaded, "optimizer": {"lr": 0.1}}
    torch.save(loaded, path)
    _check(torch_files.read(path))


def test_prefix_of_dataparallel_is_taken_off(path):
    torch.save({"model_state_dict": {f"module.{n}": x for n, x in STATE.items()}}, path)
    _check(torch_files.read(path))


def test_prefix_of_some_tensors_is_a_name(path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert torch_files.read(path).tensors.keys() == {"module.a", "b"}


def test_trained_parameters_are_read(path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, path)
    np.testing.assert_array_equal(torch_files.read(path).tensors["a"], [1, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(path, dtype):
    x = torch.linspace(-2, 3, 7).to(dtype)
    torch.save({"half": x, "full": torch.ones(1)}, path)
    checkpoint = torch_files.read(path)
    assert checkpoint.widened == ["half"]
    assert checkpoint.tensors["half"].dtype == np.float32
    np.testing.assert_array_equal(checkpoint.tensors["half"], x.double().numpy())


def test_missing_file_is_named(path):
    _fails(path, "does not exist")


def test_empty_file_is_named(path):
    path.touch()
    _fails(path, "empty", "download it again")


@pytest.mark.parametrize("page", ["<!DOCTYPE html><html>", "\n <html lang=en>", "<?xml version="])
def test_web_page_is_named(path, page):
    path.write_text(page)
    _fails(path, "web page", "download")


def test_truncated_zip_is_named(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:1000])
    _fails(path, "1,000 bytes", "download it again")


def test_truncated_pickle_is_named(path):
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:1000])
    _fails(path, "damaged", "unexpected EOF", "download it again")


def test_truncated_safetensors_file_is_named(path):
    safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-1])
    _fails(path, "safetensors", "download it again")


@pytest.mark.parametrize("content", [bytes(range(128, 256)), b"k\0", b"PK\3\4" * 20])
def test_other_file_is_named(path, content):
    path.write_bytes(content)
    _fails(path, "download it again")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)), path)
    _fails(path, "TorchScript", "state_dict()", "torch.save")


def _claiming(shape, stride):
    return torch.as_strided(torch.ones(1), shape, stride)


NOT_HELD = {
    "float8": (torch.ones(4).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "quantised": (torch.ones(4), "qint8"),
    "meta": (torch.ones(4, device="meta"), "meta"),
    "complex": (torch.ones(4, dtype=torch.complex64), "complex64"),
    "sparse": (torch.eye(3).to_sparse(), "sparse_coo"),
    "16 bits": (torch.ones(4).to(torch.uint16), "uint16"),
    "a bomb": (_claiming((10**6, 10**6), (0, 0)), "1,000,000,000,000 elements"),
}


@pytest.mark.parametrize("case", NOT_HELD)
def test_tensors_that_are_no_array_of_numbers_are_named(path, case):
    x, word = NOT_HELD[case]
    if case == "quantised":
        with warnings.catch_warnings(action="ignore"):
            x = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    torch.save({"fine": torch.ones(3), "a.weight": x}, path)
    _fails(path, "'a.weight'", word)


def test_float8_in_safetensors_is_named(path):
    safetensors.torch.save_file({"a.weight": torch.ones(4).to(torch.float8_e4m3fn)}, path)
    _fails(path, "'a.weight'", "float8_e4m3fn", "float32")


@pytest.mark.parametrize("as_zip", [True, False])
def test_pickled_code_is_refused(path, as_zip):
    loaded = {"args": argparse.Namespace(lr=0.1), "model": STATE}
    torch.save(loaded, path, _use_new_zipfile_serialization=as_zip)
    _fails(path, "argparse.Namespace", "torch.save")


def test_tar_format_is_named(path):
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    _fails(path, ".tar", "weights_only=False", "torch.save")


PLACES = "state_dict", "model_state_dict", "model"
CONTENTS = {
    "list": ([torch.ones(1)], ("list", "torch.save")),
    "tensor": (torch.ones(2), ("Tensor", "torch.save")),
    "empty dict": ({}, ("empty", "torch.save")),
    "other entry": ({"a": torch.ones(1), "epoch": 3}, ("'epoch'", "int", *PLACES)),
    "other name": ({0: torch.ones(1)}, ("0", "Tensor", *PLACES)),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_other_content_is_named(path, case):
    content, words = CONTENTS[case]
    torch.save(content, path)
    _fails(path, *words)
