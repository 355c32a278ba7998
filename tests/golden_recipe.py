"""Weights and inputs of the golden numbers: made from names and seeds, so that none are stored.

Everything is in torch's layout: maps are NCHW, kernels (out, in, h, w), linear layers (out, in).
"""

import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"


def recipe(name, shape):
    """The tensor called `name`: its random numbers are seeded by the name's checksum."""
    seed = zlib.crc32(name.encode())
    z = np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(z)
    if name.endswith("running_mean"):
        return np.float32(0.1) * z
    if len(shape) >= 2:
        return z * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    is_gain = name.endswith("weight")  # of a norm: no other weight has one axis
    return np.float32(is_gain) + np.float32(0.1) * z


def torch_weights(json_name):
    """All tensors listed in `tests/golden/<json_name>.json`, checked against its checksums."""
    weights = {}
    for name, shape, checksum in json.loads((GOLDEN / f"{json_name}.json").read_text()):
        value = recipe(name, shape)
        if zlib.crc32(value.astype("<f4").tobytes()) != checksum:
            raise AssertionError(f"{name}: other random numbers than those of the golden file")
        weights[name] = value
    return weights


def normal(seed, shape):
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def image(seed, batch, height, width):
    """(batch, 3, height, width): patches of 16 pixels and noise, as if already normalised."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((batch, 3, -(-height // 16), -(-width // 16)))
    fine = rng.standard_normal((batch, 3, height, width))
    patches = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    return (4.0 * patches + 2.0 * fine).astype(np.float32)


def unpack_bits(golden, name):
    """The binary mask stored as `<name>_bits` and `<name>_shape`, as bool."""
    shape = golden[f"{name}_shape"]
    return np.unpackbits(golden[f"{name}_bits"])[: np.prod(shape)].reshape(shape).astype(bool)


def check_input(golden, name, x):
    """Fails unless `x` is the input whose sums and end values the file keeps."""
    flat = x.astype(np.float64).ravel()
    found = [flat.sum(), np.abs(flat).sum(), *flat[:4], *flat[-2:]]
    np.testing.assert_allclose(found, golden[f"{name}_check"], rtol=1e-9, atol=1e-9)


def check_output(golden, name, x, *, atol=0.0, rel=0.0):
    """Fails if `x` differs from what the file keeps of it by more than `atol + rel * max |x|`.

    The file keeps all of it or a strided part, the mean of every channel, and [mean, std, max].
    """
    strides = json.loads(str(golden["meta"]))["strides"].get(name)
    views = {name: lambda: x, f"{name}_cmean": lambda: x.mean(axis=(2, 3))}
    views[f"{name}_stats"] = lambda: np.array([x.mean(), x.std(), np.abs(x).max()])
    if strides:
        assert list(x.shape) == strides["full_shape"], name
        index = [slice(None)] * x.ndim
        axes, steps = np.atleast_1d(strides["axis"]), np.atleast_1d(strides["stride"])
        for axis, step in zip(axes, steps, strict=True):
            index[axis] = slice(None, None, step)
        views[f"{name}_sub"] = lambda: x[tuple(index)]
    kept = [view for view in views if view in golden]
    assert kept, f"the file keeps nothing of {name}"
    limit = atol + rel * np.abs(x).max()
    for view in kept:
        np.testing.assert_allclose(views[view](), golden[view], rtol=0, atol=limit, err_msg=view)
