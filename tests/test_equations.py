import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from golden_recipe import unpack_bits

from prosam_jax import equations
from prosam_jax.types import Posterior

SAMPLERS = ("gaussian", "student_t", "t3vae")


def test_losses_and_gradients_match_torch(golden):
    arrays = golden("losses")
    cases = sorted({name.split("/")[0] for name in arrays if "/" in name})
    assert len(cases) == 6
    for case in cases:
        logits = jnp.asarray(arrays[f"{case}/logits"][:, 0])
        target = jnp.asarray(unpack_bits(arrays, f"{case}/target").reshape(logits.shape))
        total, bce, dice = arrays[f"{case}/total_bce_dice"]
        value, grad = jax.jit(jax.value_and_grad(equations.mask_loss))(logits, target)
        parts = jax.jit(lambda *a: (equations.bce_loss(*a), equations.dice_loss(*a)))
        np.testing.assert_allclose(value, total, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(parts(logits, target), (bce, dice), rtol=2e-6, atol=1e-7)
        expected = arrays[f"{case}/grad_logits"][:, 0]
        atol = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(grad, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("target", [False, True])
def test_loss_is_stable_at_extreme_logits(target):
    value_and_grad = jax.jit(jax.value_and_grad(equations.mask_loss))
    truth = jnp.full((2, 3, 5), target)
    for logit in (-1000.0, -120.0, 0.0, 120.0, 1000.0):
        value, grad = value_and_grad(jnp.full((2, 3, 5), logit), truth)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
        wrong = abs(logit) if (logit > 0) != target else 0
        bce = np.log(2) if logit == 0 else wrong
        assert bce - 1e-6 <= value <= bce + 1 + 1e-6  # Dice adds between 0 and 1


def test_masked_average_is_the_plain_average_inside():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    mask = jnp.zeros((2, 5, 7)).at[0, 1:4, 2:6].set(1)
    found = equations.masked_average(x, mask)
    expected = x[0, 1:4, 2:6].sum((0, 1)) / (12 + 5e-4)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("annotated", ["some", "all"])
def test_cosine_prior_is_the_greatest_similarity(monkeypatch, annotated, block):
    monkeypatch.setattr(equations, "PRIOR_BLOCK", block)
    rng = np.random.default_rng(0)
    query, support = (jnp.float32(rng.standard_normal((2, *x, 8))) for x in ((3, 5), (4, 2)))
    weight = rng.uniform(0.1, 1, (2, 4, 2))
    if annotated == "some":
        weight[0, 2] = weight[1, 1:] = 0
    else:
        support = jnp.abs(support)
        query = -jnp.abs(query)  # all similarities are negative
    weight = jnp.float32(weight)

    def direct(query, support):
        products = jnp.einsum("bhwc,bijc,bij->bhwij", query, support, weight)
        norms = [jnp.linalg.norm(x + 1e-15, axis=-1) for x in (query, support)]
        return (products / (jnp.einsum("bhw,bij->bhwij", *norms) + 1e-7)).max((3, 4))

    def found(query, support):
        return equations.cosine_prior(query, support, weight)

    slope = jnp.float32(rng.standard_normal((2, 3, 5)))
    results = []
    for f in (found, direct):
        value, pull = jax.jit(lambda q, s, f=f: jax.vjp(f, q, s))(query, support)
        results.append((value, *pull(slope)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_cosine_prior_of_nothing_is_zero_with_finite_gradients():
    query = jax.nn.relu(jax.random.normal(jax.random.key(0), (1, 3, 5, 8)))
    empty = jnp.zeros((1, 4, 2, 8))
    weight = jnp.ones((1, 4, 2))
    np.testing.assert_array_equal(equations.cosine_prior(query, empty, weight), 0)
    grad = jax.jit(jax.grad(lambda *a: equations.cosine_prior(*a).sum(), (0, 1)))
    for x in grad(query, empty, weight):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("nu", [3.0, 5.0, 30.0])
def test_log_density_is_scipys(nu):
    rng = np.random.default_rng(0)
    p, mean = rng.standard_normal((2, 4, 6))
    sigma = np.exp(rng.standard_normal(6))
    expected = scipy.stats.multivariate_t(shape=np.diag(sigma**2), df=nu).logpdf(p - mean)
    found = equations.student_t_log_prob(
        *(jnp.asarray(x, jnp.float32) for x in (p, mean, np.tile(sigma, (4, 1)))), nu
    )
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def _sample(sampler, k, nu=5.0, n=7, seed=0, min_scale=0.0):
    mean = jnp.arange(2 * 3 * n, dtype=jnp.float32).reshape(2, 3, n) / 10
    sigma = jnp.linspace(0.5, 2.0, n)
    posterior = Posterior(mean, jnp.broadcast_to(jnp.log(sigma), mean.shape))
    prompts = equations.sample_prompts(
        jax.random.key(seed), posterior, k, sampler=sampler, nu=nu, min_scale=min_scale
    )
    return np.asarray(prompts), np.asarray(mean), np.asarray(sigma)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_moments_are_the_closed_forms(sampler, seed):
    nu, n, k = 8.0, 7, 60_000
    prompts, mean, sigma = _sample(sampler, k, nu, n, seed)
    variance = {
        "gaussian": sigma**2,
        "student_t": sigma**2 * nu / (nu - 2),
        "t3vae": sigma**2 * nu / (nu + n - 2),
    }[sampler]
    error = 5 * np.sqrt(variance / k)
    assert (np.abs(prompts.mean(0) - mean) < error).all()
    # The spread of a sample variance is set by the fourth moment, 3 (nu - 2) / (nu - 4) at most.
    np.testing.assert_allclose(
        prompts.var(0), np.broadcast_to(variance, mean.shape), rtol=5 * np.sqrt(3.5 / k)
    )
    flat = (prompts - mean).reshape(-1, n)
    correlation = np.corrcoef(flat.T) - np.eye(n)
    assert np.abs(correlation).max() < 0.02


def test_student_t_has_the_tails_of_student_t():
    """Each coordinate is a t with 5 degrees of freedom, which no Gaussian of its variance is."""
    prompts, mean, sigma = _sample("student_t", 20_000)
    z = (prompts - mean) / sigma
    share = (np.abs(z) > 4).mean()
    expected = 2 * scipy.stats.t.sf(4, 5)
    np.testing.assert_allclose(share, expected, rtol=0.05)
    gaussian = 2 * scipy.stats.norm.sf(4 / np.sqrt(5 / 3))
    assert share > 4 * gaussian
    thin, mean, sigma = _sample("gaussian", 20_000)
    assert (np.abs((thin - mean) / sigma) > 4).mean() < expected / 50
    quantiles = np.quantile(z[:, 0, 0, 0], [0.01, 0.1, 0.5, 0.9, 0.99])
    np.testing.assert_allclose(
        quantiles, scipy.stats.t.ppf([0.01, 0.1, 0.5, 0.9, 0.99], 5), atol=0.2
    )


def test_one_delta_belongs_to_one_prompt_vector():
    """Squares within a vector share their delta and so go together; across vectors they do not."""
    prompts, mean, sigma = _sample("student_t", 20_000, nu=6.0)
    log_square = np.log(np.square((prompts - mean) / sigma))
    within = np.corrcoef(log_square[:, 0, 0, 0], log_square[:, 0, 0, 1])[0, 1]
    across = np.corrcoef(log_square[:, 0, 0, 0], log_square[:, 0, 1, 0])[0, 1]
    # log chi2(nu) has variance polygamma(1, nu / 2), log of a squared normal polygamma(1, 1 / 2).
    shared, own = scipy.special.polygamma(1, 3.0), scipy.special.polygamma(1, 0.5)
    np.testing.assert_allclose(within, shared / (shared + own), atol=0.03)
    assert abs(across) < 0.03


def test_t3vae_is_its_student_t():
    """t_n(mu, (1 + n / nu)^-1 diag(sigma^2), nu + n), as Kim et al. write it."""
    nu, n = 5.0, 7
    prompts, mean, sigma = _sample("t3vae", 20_000, nu, n)
    z = (prompts - mean) / sigma * np.sqrt(1 + n / nu)
    share = (np.abs(z) > 2.5).mean()
    np.testing.assert_allclose(share, 2 * scipy.stats.t.sf(2.5, nu + n), rtol=0.03)


def test_floor_is_added_to_the_scale():
    prompts, mean, sigma = _sample("gaussian", 20_000, min_scale=0.7)
    np.testing.assert_allclose(prompts.std(0), np.broadcast_to(sigma + 0.7, mean.shape), rtol=0.04)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_differentiates_in_mean_and_scale(sampler):
    mean, log_scale = jnp.zeros((1, 2, 3)), jnp.full((1, 2, 3), -0.5)
    key = jax.random.key(0)

    def sample(mean, log_scale):
        posterior = Posterior(mean, log_scale)
        return equations.sample_prompts(key, posterior, 4, sampler=sampler, nu=5.0)

    noise = sample(mean, log_scale) / np.exp(-0.5)
    grad_mean, grad_scale = jax.grad(lambda *a: sample(*a).sum(), (0, 1))(mean, log_scale)
    np.testing.assert_allclose(grad_mean, 4, rtol=1e-6)
    np.testing.assert_allclose(grad_scale, np.exp(-0.5) * noise.sum(0), rtol=1e-5)


def test_deterministic_posteriors_are_not_sampled():
    with pytest.raises(ValueError, match="no scale"):
        equations.sample_prompts(
            jax.random.key(0), Posterior(jnp.zeros((1, 2, 3)), None), 2, sampler="gaussian", nu=5.0
        )


@pytest.mark.parametrize("group", [1, 4, 6, 9])
def test_monte_carlo_is_the_mean_of_losses_in_any_groups(group):
    prompts = jax.random.normal(jax.random.key(0), (6, 2, 3, 4))
    embedding = jax.random.normal(jax.random.key(1), (2, 4))

    def loss(p):
        assert p.shape == (2, 3, 4)
        assert embedding.shape == (2, 4)
        value = jnp.square(jnp.einsum("bqc,bc->bq", p, embedding)).mean()
        return value, {"p": p, "sign": (p > 0).sum()}

    def plain(prompts):
        losses, aux = jax.vmap(loss)(prompts)
        return 3 * losses.mean(), aux

    def grouped(prompts):
        value, aux = equations.monte_carlo(loss, prompts, group)
        return 3 * value, aux

    (expected, aux), grad = jax.value_and_grad(plain, has_aux=True)(prompts)
    (value, found), found_grad = jax.value_and_grad(grouped, has_aux=True)(prompts)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grouped(prompts)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found_grad, grad, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found["p"], prompts)
    np.testing.assert_array_equal(found["sign"], aux["sign"])


def test_monte_carlo_loses_no_gradient_in_silence():
    prompts = jnp.ones((2, 1, 1, 3))

    def value(weight):
        return equations.monte_carlo(lambda p: ((weight * p).sum(), ()), prompts, 1)[0]

    with pytest.raises(Exception, match=r"closed-over|tracer"):
        jax.grad(value)(2.0)


def test_noise_penalises_the_laplacian():
    """Proposition 1: E[L(z + xi)] = L(z) + s^2 / 2 Lap L(z) + o(s^2)."""
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)

    def loss(z):
        return jnp.sin(z).sum() + z @ matrix @ z

    z, s = jnp.asarray([0.3, -1.0, 2.0, 0.7]), 0.1
    xi = s * jax.random.normal(jax.random.key(0), (200_000, 4))
    found = jax.vmap(lambda x: (loss(z + x) + loss(z - x)) / 2 - loss(z))(xi).mean()
    laplacian = jnp.trace(jax.hessian(loss)(z))
    np.testing.assert_allclose(found, s**2 / 2 * laplacian, rtol=0.1)
