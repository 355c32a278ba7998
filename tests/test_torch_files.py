import argparse
import hashlib
import io
import re
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch

from prosam_jax.convert import torch_files

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


def _check(checkpoint):
    assert checkpoint.tensors.keys() == STATE.keys()
    for name, x in STATE.items():
        held = checkpoint.tensors[name]
        assert held.dtype == (np.float32 if x.is_floating_point() else np.int64)
        np.testing.assert_array_equal(held, x)


def _error(path):
    with pytest.raises(ValueError) as error:
        torch_files.read(path)
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


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
    assert _error(path) == "does not exist or is no file"


def test_empty_file_is_named(path):
    path.touch()
    assert _error(path) == "is empty; download it again"


@pytest.mark.parametrize("page", ["<!DOCTYPE html><html>", "\n <html lang=en>", "<?xml version="])
def test_web_page_is_named(path, page):
    path.write_text(page)
    assert _error(path) == "is a web page, not a checkpoint; download the file it links to"


def test_truncated_zip_is_named(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert _error(path) == "is cut short after 1,000 bytes; download it again"


def test_truncated_pickle_is_named(path):
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:1000])
    assert re.fullmatch(
        r"is damaged or no torch checkpoint \(unexpected EOF.*\); download it again", _error(path)
    )


def test_truncated_safetensors_file_is_named(path):
    safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert re.fullmatch(r"is no complete safetensors file \(.+\); download it again", _error(path))


@pytest.mark.parametrize("content", [b"version https://git-lfs", bytes(range(128, 256)), b"k"])
def test_other_file_is_named(path, content):
    path.write_bytes(content)
    assert re.fullmatch(
        r"is damaged or no torch checkpoint \(.+\); download it again", _error(path)
    )


@pytest.mark.parametrize("as_zip", [True, False])
def test_pickled_code_is_refused(path, as_zip):
    loaded = {"args": argparse.Namespace(lr=0.1), "model": STATE}
    torch.save(loaded, path, _use_new_zipfile_serialization=as_zip)
    assert _error(path) == (
        "holds argparse.Namespace, a Python object that runs code when it is read; "
        "torch.save its state dict alone"
    )


def test_tar_format_is_named(path):
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert _error(path) == (
        "is in the .tar format of torch before 0.1.10; load it with torch.load(..., "
        "weights_only=False), if you trust it, and torch.save its state dict"
    )


CONTENTS = {
    "list": ([torch.ones(1)], "holds a list, not a dict of tensors; torch.save a state dict"),
    "tensor": (torch.ones(2), "holds a Tensor, not a dict of tensors; torch.save a state dict"),
    "empty dict": ({}, "holds an empty dict; torch.save a state dict"),
    "other entry": (
        {"a": torch.ones(1), "epoch": 3},
        "holds no dict of tensors: entry 'epoch' is a int; a state dict is looked for at the top "
        "and under state_dict, model_state_dict, model",
    ),
    "other name": (
        {0: torch.ones(1)},
        "holds no dict of tensors: entry 0 is a Tensor; a state dict is looked for at the top "
        "and under state_dict, model_state_dict, model",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_other_content_is_named(path, case):
    content, expected = CONTENTS[case]
    torch.save(content, path)
    assert _error(path) == expected
