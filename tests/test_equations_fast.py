"""The fast forms against the plain formulas of `equations`: values and gradients.

Tolerances are float32's: sums of a few dozen terms of order 1 in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prosam_jax import equations, equations_fast

VALUES = {"rtol": 1e-6, "atol": 1e-6}
GRADIENTS = {"rtol": 1e-5, "atol": 1e-5}


def features(seed, target, reference, annotation):
    """Signed features and an annotation; "soft" has weights between 0 and 1."""
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((2, *size, 8)) for size in (target, reference))
    share = rng.uniform(0.1, 1, (2, *reference)) if annotation == "soft" else 1.0
    inside = rng.random((2, *reference)) < 0.4
    if annotation in ("all", "none"):
        inside[:] = annotation == "all"
    weight = share * inside
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, y * inside[..., None], weight))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("annotation", ["some", "soft", "all", "none"])
@pytest.mark.parametrize(
    ("target", "reference", "block"),
    [((3, 5), (4, 7), 512), ((5, 3), (9, 11), 16), ((1, 6), (7, 1), 3), ((4, 4), (4, 4), 16)],
    ids=str,
)
def test_cosine_prior(monkeypatch, target, reference, block, annotation, seed):
    monkeypatch.setattr(equations_fast, "PRIOR_BLOCK", block)
    x, y, weight = features(seed, target, reference, annotation)
    slope = jax.random.normal(jax.random.key(seed), (2, *target))
    results = []
    for module in (equations_fast, equations):

        @jax.jit
        def run(x, y, prior=module.cosine_prior):
            value, pull = jax.vjp(lambda x, y: prior(x, y, weight), x, y)
            return value, *pull(slope)

        results.append(run(x, y))
    for found, expected, tolerance in zip(*results, (VALUES, *[GRADIENTS] * 2), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, **tolerance)
    if annotation == "none":
        np.testing.assert_array_equal(results[0][0], 0)
    else:
        assert np.abs(results[0][1]).max() > 0.1


def test_cosine_prior_of_unequal_annotations(monkeypatch):
    """One image of the batch needs every block, one the first alone, one none."""
    monkeypatch.setattr(equations_fast, "PRIOR_BLOCK", 4)
    rng = np.random.default_rng(5)
    x, y = (jnp.float32(rng.standard_normal((3, *size, 8))) for size in ((3, 5), (5, 3)))
    weight = jnp.zeros((3, 5, 3)).at[0].set(1).at[1, 4, 2].set(1)
    found = equations_fast.cosine_prior(x, y, weight)
    np.testing.assert_allclose(found, equations.cosine_prior(x, y, weight), **VALUES)


def test_cosine_prior_compares_annotated_positions_only(monkeypatch):
    """NaN in a position that is compared would show in the result."""
    monkeypatch.setattr(equations_fast, "PRIOR_BLOCK", 4)
    x, y = (jax.random.normal(jax.random.key(i), (1, 4, 6, 8)) for i in (0, 1))
    weight = jnp.zeros((1, 4, 6)).at[0, 1:3, 2:4].set(1)
    expected = equations.cosine_prior(x, y, weight)
    found = equations_fast.cosine_prior(x, jnp.where(weight[..., None] > 0, y, jnp.nan), weight)
    np.testing.assert_allclose(found, expected, **VALUES)


@pytest.mark.parametrize("weight", [0, 1])
def test_cosine_prior_of_zeros_has_finite_gradients(weight):
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (1, 3, 5, 8))).at[0, 1].set(0)
    zeros, weight = jnp.zeros((1, 4, 2, 8)), jnp.full((1, 4, 2), weight, jnp.float32)
    np.testing.assert_array_equal(equations_fast.cosine_prior(x, zeros, weight), 0)
    slope = jax.jit(jax.grad(lambda *a: equations_fast.cosine_prior(*a).sum(), (0, 1)))
    for gradient in slope(x, zeros, weight):
        assert np.isfinite(gradient).all()


def masks_loss(seed, size):
    """A decoder in small: prompts and an embedding give masks, and these the loss of Eq. 4."""
    keys = jax.random.split(jax.random.key(seed))
    embedding = jax.random.normal(keys[0], (2, *size, 4))
    truth = jax.random.bernoulli(keys[1], 0.3, (2, *size))

    def loss(prompts):
        logits = jnp.tanh(jnp.einsum("bqc,bhwc->bhwq", prompts, embedding)).sum(-1)
        aux = {"area": equations.foreground(logits).sum((1, 2)), "prompts": prompts}
        return equations.mask_loss(logits, truth), aux

    return loss


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("k", "group"), [(1, 1), (6, 1), (6, 3), (7, 2), (7, 4), (10, 9), (5, 8)])
def test_monte_carlo(k, group, seed):
    loss = masks_loss(seed, (3, 5))
    prompts = jax.random.normal(jax.random.key(9 + seed), (k, 2, 3, 4))

    def run(mean):
        def scaled(prompts):
            value, aux = mean(prompts)
            return 3 * value, aux

        return jax.jit(jax.value_and_grad(scaled, has_aux=True))(prompts)

    (value, aux), gradient = run(lambda p: equations_fast.monte_carlo(loss, p, group))
    (expected, expected_aux), expected_gradient = run(lambda p: equations.monte_carlo(loss, p))
    np.testing.assert_allclose(value, expected, **VALUES)
    alone, _ = equations_fast.monte_carlo(loss, prompts, group)
    np.testing.assert_allclose(3 * alone, expected, **VALUES)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 1e-3
    assert aux["area"].shape == (k, 2)
    jax.tree.map(np.testing.assert_array_equal, aux, expected_aux)


def test_monte_carlo_loses_no_gradient_in_silence():
    prompts = jnp.ones((2, 1, 1, 3))

    def value(weight):
        return equations_fast.monte_carlo(lambda p: ((weight * p).sum(), ()), prompts, 1)[0]

    with pytest.raises(Exception, match=r"closed-over|tracer"):
        jax.grad(value)(2.0)


def temporary_memory(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_monte_carlo_takes_less_memory():
    loss = masks_loss(0, (64, 64))
    prompts = jnp.ones((10, 2, 3, 4))
    plain, fast = (
        temporary_memory(jax.grad(mean, has_aux=True), prompts)
        for mean in (
            lambda p: equations.monte_carlo(loss, p),
            lambda p: equations_fast.monte_carlo(loss, p, 2),
        )
    )
    assert fast < 0.4 * plain
