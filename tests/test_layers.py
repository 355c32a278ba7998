import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from prosam_jax import layers


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_layer_norm_keeps_digits_of_small_variances():
    x = 100 + 0.01 * _normal(0, 3, 5, 16)
    for eps in (1e-5, 1e-6):
        ours = layers.layer_norm(16, eps, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.asarray(x))
        oracle = torch.nn.functional.layer_norm(torch.from_numpy(x).double(), (16,), eps=eps)
        np.testing.assert_allclose(ours, oracle, atol=5e-3)  # float32 holds 100.01 to 8e-6


@pytest.mark.parametrize(("size", "stride"), [((5, 6), 1), ((7, 4), 2)])
def test_convolutions_of_single_pixels_are_torchs(size, stride):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    ours = layers.conv(3, 4, 1, stride=stride, dtype=jnp.float32, rngs=nnx.Rngs(1))
    oracle = torch.nn.Conv2d(3, 4, 1, stride)
    kernel, bias = (np.array(p[...]) for p in (ours.kernel, ours.bias))
    with torch.no_grad():
        oracle.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
        oracle.bias.copy_(torch.from_numpy(bias))
        expected = oracle(torch.from_numpy(np.moveaxis(x, -1, 1))).numpy()
    found = ours(jnp.asarray(x))
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, rtol=0, atol=1e-6)


def test_gelu_is_exact():
    x = np.linspace(-4, 4, 101, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x))
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 4, 4)]
)
def test_conv_is_torchs(stride, padding, dilation):
    ours = layers.conv(
        3, 5, 3, stride=stride, padding=padding, dilation=dilation,
        dtype=jnp.float32, rngs=nnx.Rngs(0),
    )  # fmt: skip
    oracle = torch.nn.Conv2d(3, 5, 3, stride, padding, dilation)
    x = _normal(1, 2, 3, 11, 14)
    with torch.no_grad():
        oracle.weight.copy_(torch.tensor(np.transpose(ours.kernel[...], (3, 2, 0, 1))))
        oracle.bias.copy_(torch.tensor(np.asarray(ours.bias[...])))
        expected = oracle(torch.from_numpy(x)).numpy()
    found = ours(jnp.asarray(np.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_transposed_conv_is_torchs(seed):
    ours = layers.ConvTranspose2x2(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    oracle = torch.nn.ConvTranspose2d(6, 4, 2, 2)
    x = _normal(seed, 2, 6, 3, 5)
    with torch.no_grad():
        oracle.weight.copy_(torch.tensor(np.transpose(ours.kernel[...], (3, 2, 0, 1))))
        oracle.bias.copy_(torch.tensor(np.asarray(ours.bias[...])))
        expected = oracle(torch.from_numpy(x)).numpy()
    found = ours(jnp.asarray(np.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1), atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_is_torchs(num_heads):
    ours = layers.Attention(
        16, num_heads, bias_init=nnx.initializers.normal(), dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    oracle = torch.nn.MultiheadAttention(16, num_heads, batch_first=True)
    q, k, v = _normal(0, 2, 3, 16), _normal(1, 2, 7, 16), _normal(2, 2, 7, 16)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        kernels = np.concatenate([np.asarray(p.kernel[...]).T for p in projections])
        biases = np.concatenate([np.asarray(p.bias[...]) for p in projections])
        oracle.in_proj_weight.copy_(torch.from_numpy(kernels))
        oracle.in_proj_bias.copy_(torch.from_numpy(biases))
        oracle.out_proj.weight.copy_(torch.tensor(np.asarray(ours.out_proj.kernel[...]).T))
        oracle.out_proj.bias.copy_(torch.tensor(np.asarray(ours.out_proj.bias[...])))
        expected, _ = oracle(*map(torch.from_numpy, (q, k, v)))
    found = ours(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_initial_values_have_torchs_spread():
    ours = layers.linear(300, 200, dtype=jnp.float32, rngs=nnx.Rngs(0))
    torch.manual_seed(0)
    oracle = torch.nn.Linear(300, 200)
    for mine, its in ((ours.kernel, oracle.weight), (ours.bias, oracle.bias)):
        x, y = np.asarray(mine[...]), its.detach().numpy()
        np.testing.assert_allclose(x.std(), y.std(), rtol=0.1)
        np.testing.assert_allclose(np.abs(x).max(), np.abs(y).max(), rtol=0.02)


def test_channel_dropout_drops_whole_channels_and_keeps_the_mean():
    x = jnp.ones((50, 3, 4, 64))
    y = layers.channel_dropout(x, 0.25, jax.random.key(0))
    per_channel = y.reshape(50, 12, 64)
    assert bool((per_channel == per_channel[:, :1]).all())
    assert set(np.unique(y).tolist()) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(y.mean(), 1, atol=0.05)


def test_sine_positions_are_the_references(golden):
    arrays = golden("posenc")
    for h, w, stride in ((5, 7, 1), (16, 16, 15), (17, 21, 15), (64, 64, 15)):
        found = np.moveaxis(layers.sine_positions(h, w, 256), -1, 0)[::stride]
        name = f"pos_{h}x{w}" + ("" if stride == 1 else "_sub")
        np.testing.assert_allclose(found, arrays[name], rtol=0, atol=1e-6)
