"""The study of gradient noise: its statistics, and the gradient that each row stands for."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prosam_jax import equations, model
from prosam_jax.config import Config
from prosam_jax.types import Features, Taps
from studies import gradient_noise


def test_variance_is_the_sum_over_parameters():
    gradients = np.array([[1.0, 0.0, 5.0], [3.0, 0.0, 5.0], [5.0, 3.0, 5.0]])
    np.testing.assert_allclose(gradient_noise.variance(gradients), 4 + 3)


def test_a_ratio_of_proportional_variances_is_certain():
    recipe = np.array([1.0, 2.0, 7.0])
    found = gradient_noise.over_recipe(recipe / 4, recipe)
    assert found == {"value": 0.25, "low": 0.25, "high": 0.25}
    found = gradient_noise.over_recipe(np.array([1.0, 4.0, 1.0]), recipe)
    assert found["low"] < found["value"] == 0.6 < found["high"]


@pytest.mark.parametrize("row", gradient_noise.ROWS, ids=lambda row: row.labels[0])
def test_every_row_has_settings(row):
    cfg = Config.from_dict({"distribution": {"samples": 2}})
    found = gradient_noise.settings(row, cfg).distribution
    assert found.name == row.method
    assert found.samples == dict(row.settings).get("distribution.samples", 2)


@pytest.mark.slow
def test_gradient_is_that_of_the_expected_loss_with_a_wider_sigma():
    cfg = Config.from_dict(
        {
            "sam": {"model": "tiny", "weights": "random", "image_size": 64},
            "backbone": {"name": "tiny", "weights": "random"},
            "prompt": {"num_queries": 3},
            "distribution": {"name": "gaussian", "samples": 2, "init_scale": 0.1},
        }
    )
    whole = model.build(cfg)
    parts = model.split(whole)
    c, d = whole.backbone.merged_channels, whole.backbone.merged_channels
    draw = iter(jax.random.split(jax.random.key(0), 5))
    target, reference = (
        Taps(*(jax.random.normal(next(draw), (2, 4, 4, n)) for n in (c, d))) for _ in range(2)
    )
    mask = jnp.ones((2, 4, 4))
    embedding = jax.random.normal(next(draw), (2, 4, 4, 256))
    features = Features(embedding, target, reference, mask)
    truth = jnp.zeros((2, 32, 32), bool).at[:, :16].set(True)
    found = gradient_noise.gradient_of(cfg, parts.graph, 3.0)(
        parts.params, parts.frozen, features, truth, jax.random.key(1), jax.random.key(2)
    )

    @jax.jit
    @jax.grad
    def plain(params):
        prosam = nnx.merge(parts.graph, params, parts.frozen)
        posterior = prosam.posterior(features, jax.random.key(1))
        noise = equations.draw_noise(
            jax.random.key(2), (2, *posterior.mean.shape), "gaussian", cfg.distribution.nu
        )
        wider = 3 * equations.scale(posterior.log_scale)
        prompts = equations.reparameterise(posterior.mean, wider, noise, cfg.distribution.nu)
        losses = [
            equations.mask_loss(prosam.decode(embedding, p, (32, 32)), truth) for p in prompts
        ]
        return sum(losses) / 2

    expected = jax.flatten_util.ravel_pytree(plain(parts.params))[0]
    assert float(jnp.abs(expected).max()) > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
