"""What all backbones have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prosam_jax import backbone
from prosam_jax.config import BACKBONES, BackboneConfig

FAMILIES = ("vgg16_bn",)  # and ResNet, of which two are tiny


@functools.partial(jax.jit, static_argnums=(0, 1))
def taps(name, dtype, key):
    network = backbone.build(BackboneConfig(name=name, dtype=dtype), rngs=nnx.Rngs(key))
    images = jax.random.normal(key, (1, 48, 64, 3))
    found = backbone.target_taps(network, images)
    mask = jnp.zeros((1, *found.merged.shape[1:3])).at[:, 1:, 1:3].set(1)
    return found, backbone.reference_taps(network, images, mask)


@pytest.mark.parametrize(
    "name",
    [
        *("shapes", "tiny"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in FAMILIES),
        *(
            pytest.param(x, marks=pytest.mark.exhaustive)
            for x in sorted({*BACKBONES} - {"shapes", "tiny", *FAMILIES})
        ),
    ],
)
def test_bfloat16_is_a_setting_that_rounds_and_gives_float32(name):
    exact, rounded = (
        jax.tree.leaves(taps(name, dtype, jax.random.key(1))) for dtype in ("float32", "bfloat16")
    )
    for x, y in zip(exact, rounded, strict=True):
        assert x.dtype == y.dtype == jnp.float32 and x.shape == y.shape
        error = np.linalg.norm(x - y) / np.linalg.norm(x)
        assert 1e-4 < error < 0.03, error
