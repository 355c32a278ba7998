"""The study of sigma: slopes and agreement where their values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import told

from prosam_jax import curvature
from prosam_jax.errors import UserError
from studies import sigma


def test_slopes_of_a_quadratic_loss_are_the_closed_forms():
    """L(p) = p^T A p / 2: E L = L(mu) + c^2 s^2 tr A / 2; slopes s^2 tr A and mu^T A mu."""
    q, n = 2, 3
    a = jnp.diag(jnp.asarray([1.0, 2.0, 3.0, 4.0, 0.5, -6.0]))
    mean = jax.random.normal(jax.random.key(0), (q, n))
    width = jnp.asarray([[0.5, 1.0, 2.0], [1.0, 0.3, 0.2]])
    x = curvature.draw_displacements(jax.random.key(1), width, 20_000, sampler="student_t", nu=9.0)
    found = jax.jit(lambda x: sigma.slopes(lambda p: p.ravel() @ a @ p.ravel() / 2, mean, x))(x)
    trace = 9 / 7 * (jnp.square(width).ravel() * jnp.diag(a)).sum()
    flat = mean.ravel()
    at_mean = flat @ a @ flat
    np.testing.assert_allclose(found.of_norm, at_mean, rtol=1e-3)
    np.testing.assert_allclose(found.of_scale, trace, rtol=0.05)
    np.testing.assert_allclose(found.loss, (at_mean + trace) / 2, rtol=0.05)


def test_slopes_cancel_where_the_length_of_prompts_does_not_matter():
    mean = jax.random.normal(jax.random.key(0), (2, 5))
    x = 0.7 * jax.random.normal(jax.random.key(1), (50, 2, 5))

    def loss(p):
        return (p[:, 0] / jnp.linalg.norm(p, axis=-1)).sum()

    found = sigma.slopes(loss, mean, x)
    assert abs(found.of_norm) > 0.01
    np.testing.assert_allclose(found.of_norm, -found.of_scale, rtol=1e-4)


def test_agreement_finds_the_line():
    rng = np.random.default_rng(1)
    predicted = rng.standard_normal((400, 2))
    found = sigma.agreement(
        predicted * [1.0, 0.3] + [0, 1] * rng.normal(0, 0.4, (400, 1)), predicted
    )
    np.testing.assert_allclose(found["slope"], [1, 0.3], atol=0.05)
    np.testing.assert_allclose(found["correlation"], [1, 0.6], atol=0.06)
    np.testing.assert_allclose([found["low"][0], found["high"][0]], 1, rtol=1e-9)
    assert found["low"][1] < 0.3 < found["high"][1]


def test_a_folder_without_runs_is_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(UserError) as error:
        sigma.finished(tmp_path)
    told(error, str(tmp_path), "prosam reproduce --table 4")
