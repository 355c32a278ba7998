"""Noise drawn evenly against the laws it must keep, and the prior against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from conftest import told

from prosam_jax import equations, sampling
from prosam_jax.config import DRAWS
from prosam_jax.equations import SAMPLERS
from prosam_jax.errors import UserError

NU = 6.0


def _noise(draws, k, *, sampler="student_t", shape=(2, 3, 5), shared_delta=False, seed=0):
    return sampling.draw_noise(
        jax.random.key(seed), (k, *shape), sampler, NU, draws=draws, shared_delta=shared_delta
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_independent_draws_are_those_of_equation_6(sampler):
    found = _noise("independent", 4, sampler=sampler)
    expected = equations.draw_noise(jax.random.key(0), (4, 2, 3, 5), sampler, NU)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shared_delta", [False, True])
@pytest.mark.parametrize("draws", DRAWS)
def test_each_sample_has_the_distribution_of_equation_6(draws, shared_delta, sampler):
    """Every one of K = 5, by Kolmogorov-Smirnov over many keys."""
    keys = jax.random.split(jax.random.key(1), 4_000)

    @jax.jit
    @jax.vmap
    def draw(key):
        return sampling.draw_noise(
            key, (5, 1, 2, 3), sampler, NU, draws=draws, shared_delta=shared_delta
        )

    noise = draw(keys)
    for k in range(5):
        assert scipy.stats.kstest(noise.eps[:, k, 0, 1, 2], "norm").pvalue > 1e-3
        if sampler == "gaussian":
            assert noise.delta is None
        else:
            freedom = NU + 3 if sampler == "t3vae" else NU
            law = scipy.stats.chi2(freedom).cdf
            assert scipy.stats.kstest(noise.delta[:, k, 0, 1, 0], law).pvalue > 1e-3
    across = np.corrcoef(np.reshape(noise.eps[:, 0], (len(keys), -1)).T) - np.eye(6)
    assert np.abs(across).max() < 5 / np.sqrt(len(keys))


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_antithetic_draws_are_opposite_pairs(k):
    noise = _noise("antithetic", k)
    half, pairs = (k + 1) // 2, k // 2
    assert noise.eps.shape == (k, 2, 3, 5) and noise.delta.shape == (k, 2, 3, 1)
    np.testing.assert_array_equal(noise.eps[half:], -noise.eps[:pairs])
    np.testing.assert_array_equal(noise.delta[half:], noise.delta[:pairs])
    assert len(np.unique(noise.delta[:half])) == half * 6
    mean = jnp.arange(30.0).reshape(2, 3, 5)
    prompts = equations.reparameterise(mean, jnp.ones_like(mean), noise, NU)
    if k % 2 == 0:
        np.testing.assert_allclose(prompts.mean(0), mean, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_stratified_draws_have_one_sample_in_each_interval(k):
    eps = np.asarray(_noise("stratified", k, seed=3).eps)
    interval = np.floor(scipy.stats.norm.cdf(eps) * k).astype(int)
    expected = np.broadcast_to(np.arange(k).reshape(k, 1, 1, 1), eps.shape)
    np.testing.assert_array_equal(np.sort(interval, axis=0), expected)
    assert np.isfinite(eps).all()


@pytest.mark.parametrize("draws", DRAWS)
def test_one_delta_can_be_shared_by_all_prompts_of_a_sample(draws):
    own = _noise(draws, 3).delta
    shared = _noise(draws, 3, shared_delta=True).delta
    assert own.shape == shared.shape
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[:, :, :1], shared.shape))
    assert (own[:, :, 0] != own[:, :, 1]).all()
    assert len(np.unique(shared)) == (4 if draws == "antithetic" else 6)


def test_even_draws_vary_less():
    """The mean of K = 8 losses: antithetic pairs cancel a linear loss, strata nearly any."""

    def variance(draws, loss):
        keys = jax.random.split(jax.random.key(5), 3_000)

        @jax.jit
        @jax.vmap
        def mean(key):
            eps = sampling.draw_noise(key, (8, 1, 1, 2), "gaussian", NU, draws=draws).eps
            return loss(eps).mean()

        return np.var(mean(keys))

    def linear(eps):
        return eps.sum((1, 2, 3))

    def bent(eps):
        return jnp.exp(eps).sum((1, 2, 3))

    np.testing.assert_allclose(variance("independent", linear), 2 / 8, rtol=0.1)
    assert variance("antithetic", linear) < 1e-12
    assert variance("stratified", linear) < 0.1 * variance("independent", linear)
    assert variance("antithetic", bent) < 0.8 * variance("independent", bent)
    assert variance("stratified", bent) < 0.5 * variance("independent", bent)


def test_unknown_draws_are_refused():
    with pytest.raises(UserError) as error:
        _noise("antitetic", 2)
    told(error, "draws='antitetic'", "antithetic")


def _kl(sampler, mean, sigma, prior_scale, k=1):
    noise = equations.draw_noise(jax.random.key(0), (k, *mean.shape), sampler, NU)
    prompts = equations.reparameterise(mean, sigma, noise, NU)
    return sampling.kl_to_prior(prompts, mean, sigma, prior_scale, sampler=sampler, nu=NU)


def test_gaussian_divergence_is_the_closed_form():
    mean = jnp.asarray([[[3.0, 4.0], [-6.0, 8.0]]])
    sigma = jnp.asarray([[[0.5, 2.0], [1.0, 3.0]]])
    width = 0.2 * np.asarray([5.0, 10.0])[:, None] / np.sqrt(2)
    ratio = np.asarray(sigma) / width
    expected = (np.square(ratio) / 2 - 0.5 - np.log(ratio)).mean()
    np.testing.assert_allclose(_kl("gaussian", mean, sigma, 0.2), expected, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["student_t", "t3vae"])
def test_heavy_tailed_divergence_is_the_integral(sampler):
    """In one dimension, where it is an integral over a line."""
    mean, sigma = jnp.full((1, 1, 1), 2.0), jnp.full((1, 1, 1), 0.7)
    found = _kl(sampler, mean, sigma, 0.5, k=40_000)
    freedom, shrunk = (NU + 1, 0.7 * np.sqrt(NU / (NU + 1))) if sampler == "t3vae" else (NU, 0.7)
    q, prior = scipy.stats.t(freedom, 2, shrunk), scipy.stats.t(NU, 2, 0.5 * 2)
    expected, _ = scipy.integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - prior.logpdf(x)), -100, 100, points=[2], limit=200
    )
    np.testing.assert_allclose(found, expected, atol=0.005)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_divergence_does_not_depend_on_the_norm_of_the_prompts(sampler):
    mean = jax.random.normal(jax.random.key(1), (2, 3, 8))
    sigma = jnp.exp(jax.random.normal(jax.random.key(2), mean.shape)) / 10
    one, other = (_kl(sampler, c * mean, c * sigma, 0.3, k=4) for c in (1, 40))
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["gaussian", "student_t"])
def test_divergence_vanishes_at_the_prior(sampler):
    mean = jax.random.normal(jax.random.key(1), (2, 3, 8))
    sigma = jnp.broadcast_to(0.3 * sampling.root_mean_square(mean), mean.shape)
    np.testing.assert_allclose(_kl(sampler, mean, sigma, 0.3, k=4), 0, atol=1e-6)
    narrow = jax.grad(lambda x: _kl(sampler, mean, x * sigma, 0.3, k=200))
    assert narrow(0.5) < 0 < narrow(2.0)
