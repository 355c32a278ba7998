"""Torch's files of any bytes give tensors or one line (`FUZZ=100` tries more)."""

import io

import numpy as np
import pytest
import safetensors.torch
import torch
from fuzzing import changed_bytes, examples, result_or_line
from hypothesis import given
from hypothesis import strategies as st

from prosam_jax.convert import torch_files

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def _saved(state, **how):
    file = io.BytesIO()
    torch.save(state, file, **how)
    return file.getvalue()


SEEDS = {
    "zip": _saved(STATE),
    "pickle": _saved({"state_dict": STATE}, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(STATE),
    "meta": _saved({"a": torch.ones(3, device="meta")}),
    "sparse": _saved({"a": torch.eye(3).to_sparse()}),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "x.pth"


@pytest.mark.parametrize("kind", SEEDS)
def test_checkpoints_of_any_bytes(path, kind):
    @examples(30)
    @given(content=changed_bytes(SEEDS[kind]) | st.binary(max_size=60))
    def read(content):
        path.write_bytes(content)
        found = result_or_line(torch_files.read, path)
        for x in found.tensors.values() if found else ():
            assert isinstance(x, np.ndarray) and x.nbytes <= torch_files.UNFOLDED

    read()
