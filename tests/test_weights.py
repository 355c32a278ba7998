import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import told
from flax import nnx

from prosam_jax.errors import UserError
from prosam_jax.weights import files

MADE_BY = "prosam weights convert sam --model vit_b"
METADATA = {"kind": "sam", "architecture": "vit_b"}


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 5, rngs=rngs)
        self.tokens = nnx.List([nnx.Param(rngs.normal((1, 4))) for _ in range(2)])
        self.mean = nnx.BatchStat(rngs.normal((7,)))


NAMES = ["linear.bias", "linear.kernel", "mean", "tokens.0", "tokens.1"]


def _build(rngs):
    return Net(rngs=rngs)


def _load(path, build=_build, kind="sam", architecture="vit_b"):
    return files.load(build, path, kind=kind, architecture=architecture, made_by=MADE_BY)


def _error(path, **kwargs):
    with pytest.raises(UserError) as error:
        _load(path, **kwargs)
    return error


@pytest.fixture
def arrays():
    return files.leaves(Net(rngs=nnx.Rngs(3)))


@pytest.fixture
def path(tmp_path, arrays):
    files.save(tmp_path / "w.safetensors", arrays, METADATA)
    return tmp_path / "w.safetensors"


def test_leaves_are_named_by_their_paths(arrays):
    assert sorted(arrays) == NAMES
    assert {name: x.shape for name, x in arrays.items()} == {
        "linear.bias": (5,),
        "linear.kernel": (3, 5),
        "mean": (7,),
        "tokens.0": (1, 4),
        "tokens.1": (1, 4),
    }


def test_load_gives_back_what_was_saved(path, arrays):
    loaded = files.leaves(_load(path))
    assert sorted(loaded) == NAMES
    for name, x in loaded.items():
        assert isinstance(x, jax.Array)
        np.testing.assert_array_equal(x, arrays[name])


def test_loaded_module_computes(path, arrays):
    x = np.ones((2, 3), np.float32)
    expected = x @ np.asarray(arrays["linear.kernel"]) + np.asarray(arrays["linear.bias"])[None]
    y = jax.jit(lambda net: net.linear(x))(_load(path))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


def test_abstract_computes_nothing():
    values = files.leaves(files.abstract(_build)).values()
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in values)


def test_random_weights_depend_on_seed_and_name_alone():
    once, again, other = (files.leaves(files.random(_build, seed)) for seed in (1, 1, 2))
    for name, x in once.items():
        np.testing.assert_array_equal(x, again[name])
    assert not np.array_equal(once["tokens.0"], other["tokens.0"])
    assert not np.array_equal(once["tokens.0"], once["tokens.1"])
    np.testing.assert_array_equal(once["linear.bias"], np.zeros(5))


def test_random_kernels_keep_the_size_of_features():
    def build(rngs):
        return nnx.Linear(400, 300, rngs=rngs)

    assert np.std(files.leaves(files.random(build, 0))["kernel"]) == pytest.approx(0.05, rel=0.02)


def _metadata(**entries):
    return {files.NAMESPACE: json.dumps({"format": files.FORMAT, **entries})}


def test_other_programs_can_read_the_file(path, arrays):
    held = safetensors.numpy.load_file(path)
    assert sorted(held) == NAMES
    for name, x in held.items():
        np.testing.assert_array_equal(x, arrays[name])
    with safetensors.safe_open(path, framework="numpy") as file:
        facts = files.read_metadata(file, path)
        assert len(facts.pop("arrays_sha256")) == 64
        assert facts == {"format": files.FORMAT, **METADATA}


def test_views_are_saved_by_value(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    views = {"a": x.transpose(2, 0, 1), "b": x[:, ::2], "c": np.broadcast_to(x[0, 0, 1], ())}
    files.save(tmp_path / "views.safetensors", views, METADATA)
    for name, held in safetensors.numpy.load_file(tmp_path / "views.safetensors").items():
        np.testing.assert_array_equal(held, views[name])


def test_equal_input_makes_equal_bytes(tmp_path, path, arrays):
    again = tmp_path / "again.safetensors"
    reordered = {name: arrays[name] for name in reversed(arrays)}
    files.save(again, reordered, METADATA)
    assert again.read_bytes() == path.read_bytes()


def test_save_makes_the_folder_and_replaces_the_file(tmp_path, path, arrays):
    new = tmp_path / "a" / "b" / "w.safetensors"
    files.save(new, {name: x + 1 for name, x in arrays.items()}, METADATA)
    np.testing.assert_array_equal(_load(new).mean[...], arrays["mean"] + 1)
    files.save(new, arrays, METADATA)
    assert new.read_bytes() == path.read_bytes()
    assert os.listdir(new.parent) == ["w.safetensors"]


def test_others_may_read_the_file_as_any_new_one(tmp_path, arrays):
    files.save(tmp_path / "w.safetensors", arrays, {})
    (tmp_path / "any").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_failed_save_leaves_the_old_file_alone(tmp_path, path, arrays, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.save(path, {name: x + 1 for name, x in arrays.items()}, METADATA)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(tmp_path, arrays, value):
    bias = np.array(arrays["linear.bias"])
    bias[3] = value
    files.save(tmp_path / "w.safetensors", {**arrays, "linear.bias": bias}, METADATA)
    told(_error(tmp_path / "w.safetensors"), "w.safetensors", "linear.bias", "NaN or infinity")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_only_float32_is_saved(tmp_path, dtype):
    with pytest.raises(UserError) as error:
        files.save(tmp_path / "w.safetensors", {"x": np.ones(2, dtype)}, METADATA)
    told(error, "x", np.dtype(dtype), "float32")
    assert not os.listdir(tmp_path)


def test_missing_file_names_the_command():
    told(_error("no/w.safetensors"), "no/w.safetensors", MADE_BY)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_damaged_file_is_named(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    told(_error(path), path, "complete", MADE_BY)


def test_changed_numbers_are_noticed(path):
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(whole)
    told(_error(path), path, "damaged", MADE_BY)


FORMS = {
    "": "is empty",
    "<!DOCTYPE html><html><body>Not found</body></html>": "web page",
    "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n": "git lfs pull",
}


@pytest.mark.parametrize("text", FORMS)
def test_another_form_is_named(path, text):
    path.write_text(text)
    told(_error(path), path, FORMS[text], MADE_BY)


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_metadata_of_another_program_is_named(path, arrays, text):
    held = {name: np.asarray(x) for name, x in arrays.items()}
    safetensors.numpy.save_file(held, path, metadata={files.NAMESPACE: text})
    told(_error(path), path, files.NAMESPACE, "JSON object")


@pytest.mark.parametrize("wrong", [{"kind": ["sam"]}, {"kind": {}}, {"architecture": None}])
def test_metadata_of_another_type_is_named(path, arrays, wrong):
    held = {name: np.asarray(x) for name, x in arrays.items()}
    safetensors.numpy.save_file(held, path, metadata=_metadata(**METADATA | wrong))
    told(_error(path), path, files.FORMAT, MADE_BY)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_whole_files_hold_float32_alone(path, dtype):
    size = {"BF16": 2}.get(dtype, 1)
    entry = {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"x": entry, "__metadata__": _metadata(**METADATA)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with safetensors.safe_open(path, framework="numpy") as file, pytest.raises(UserError) as error:
        files.check_whole(file, path, made_by=MADE_BY)
    told(error, path, "x", dtype, "float32", MADE_BY)


def test_file_of_another_program_is_named(path, arrays):
    held = {name: np.asarray(x) for name, x in arrays.items()}
    safetensors.numpy.save_file(held, path, metadata={"format": "pt"})
    told(_error(path), path, files.FORMAT, MADE_BY)


def test_another_architecture_is_named(path):
    error = _error(path, architecture="vit_h")
    told(error, path, "set sam.model=vit_b", "sam.model=vit_h", MADE_BY)


def test_another_kind_is_named(path):
    error = _error(path, kind="backbone", architecture="resnet50")
    told(error, path, "sam.model=vit_b", "backbone.name=resnet50", MADE_BY)


def test_every_misfit_is_reported(path, arrays):
    del arrays["linear.kernel"], arrays["mean"]
    arrays |= {"tokens.0": jnp.ones((4, 1)), "linear.bias": jnp.ones((6,))}
    arrays |= {f"old.{i}": jnp.ones(()) for i in range(9)}
    files.save(path, arrays, METADATA)
    told(
        _error(path),
        f"{path} does not fit sam.model=vit_b (2 missing: linear.kernel, mean; ",
        "9 unexpected: old.0, old.1, ",
        " and 1 more; 2 of another shape: linear.bias is (6,), not (5,), tokens.0 is (4, 1)",
        f"; make it again with: {MADE_BY}",
    )


def test_another_type_is_reported(path, arrays):
    held = {name: np.asarray(x) for name, x in arrays.items()}
    held["mean"] = held["mean"].astype(np.float16)
    safetensors.numpy.save_file(held, path, metadata=_metadata(**METADATA))
    assert all(word in str(_error(path).value) for word in ("mean", "F16", "float32"))


def test_metadata_may_be_nested(tmp_path, arrays):
    nested = METADATA | {"frozen": {"sam": {"seed": 3}}, "fold": None, "classes": ["bus", "car"]}
    files.save(tmp_path / "w", arrays, nested)
    assert nested.items() <= files.metadata(tmp_path / "w", made_by=MADE_BY).items()
    with pytest.raises(UserError) as error:
        files.metadata("none", made_by=MADE_BY)
    told(error, "none", MADE_BY)
