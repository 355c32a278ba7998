import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import told
from golden_recipe import unpack_bits

from prosam_jax import equations
from prosam_jax.errors import UserError
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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("annotated", ["some", "all"])
def test_cosine_prior_is_the_greatest_similarity(annotated, seed):
    """Against its definition in words, position by position in float64."""
    rng = np.random.default_rng(seed)
    target, reference = (rng.standard_normal((2, *size, 8)) for size in ((3, 5), (4, 2)))
    weight = rng.uniform(0.1, 1, (2, 4, 2))
    if annotated == "some":
        weight[0, 2] = weight[1, 1:] = 0
    else:
        target, reference = -np.abs(target), np.abs(reference)  # all similarities are negative
    expected = np.full((2, 3, 5), -np.inf)
    for b, y, x, i, j in np.ndindex(2, 3, 5, 4, 2):
        one, other = target[b, y, x], reference[b, i, j]
        cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
        expected[b, y, x] = max(expected[b, y, x], weight[b, i, j] * cosine)
    found = equations.cosine_prior(*(jnp.float32(x) for x in (target, reference, weight)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found < 0).all() == (annotated == "all")


def test_cosine_prior_carries_vrp_sams_epsilon():
    short = jnp.full((1, 1, 1, 1), 1e-4)  # the product of the norms is 1e-8, the epsilon 1e-7
    found = equations.cosine_prior(short, short, jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(found, 1 / 11, rtol=1e-5)


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


def _sample(sampler, k, nu=5.0, n=7, seed=0):
    mean = jnp.arange(2 * 3 * n, dtype=jnp.float32).reshape(2, 3, n) / 10
    sigma = jnp.linspace(0.5, 2.0, n)
    posterior = Posterior(mean, jnp.broadcast_to(jnp.log(sigma), mean.shape))
    prompts = equations.sample_prompts(jax.random.key(seed), posterior, k, sampler=sampler, nu=nu)
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
    with pytest.raises(UserError) as error:
        equations.sample_prompts(
            jax.random.key(0), Posterior(jnp.zeros((1, 2, 3)), None), 2, sampler="gaussian", nu=5.0
        )
    told(error, "no scale")


def test_monte_carlo_is_a_mean_of_losses():
    """Not the loss of a mean: a loss of squares tells them apart."""
    prompts = jax.random.normal(jax.random.key(0), (6, 2, 3, 4))
    run = jax.value_and_grad(
        lambda p: equations.monte_carlo(lambda x: (jnp.square(x).sum(), x.max()), p), has_aux=True
    )
    (value, largest), gradient = run(prompts)
    np.testing.assert_allclose(value, np.square(prompts).sum() / 6, rtol=1e-6)
    np.testing.assert_allclose(gradient, prompts / 3, rtol=1e-6)
    np.testing.assert_array_equal(largest, prompts.max((1, 2, 3)))


@pytest.mark.parametrize(("mean", "sigma"), [(0.4, 0.7), (-1.0, 2.0)])
def test_monte_carlo_estimates_the_integral(mean, sigma):
    """Eq. 10 with samples of Eq. 6-7 against the integral of Eq. 8-9 over the density of Eq. 5."""
    nu, k = 5.0, 40_000
    truth = jnp.asarray([[[True]]])

    def loss(p):
        return equations.mask_loss(p, truth)

    posterior = Posterior(jnp.full((1, 1, 1), mean), jnp.full((1, 1, 1), np.log(sigma)))
    prompts = equations.sample_prompts(jax.random.key(0), posterior, k, sampler="student_t", nu=nu)
    found, losses = equations.monte_carlo(lambda p: (loss(p), loss(p)), prompts)

    p = jnp.linspace(-150, 150, 300_001)[:, None]
    at_mean, width = (jnp.full_like(p, x) for x in (mean, sigma))
    density = jnp.exp(equations.student_t_log_prob(p, at_mean, width, nu))
    values = jax.vmap(loss)(p[:, None, None])
    integral = np.trapezoid(np.float64(density) * values, p[:, 0])
    np.testing.assert_allclose(found, integral, atol=5 * losses.std() / np.sqrt(k))
    assert abs(loss(posterior.mean) - integral) > 10 * losses.std() / np.sqrt(k)


def test_noise_penalises_the_laplacian():
    """Proposition 1 and Eq. 11-13: E L(z + xi) = L(z) + s^2 / 2 Lap L(z) + o(s^2)."""
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)

    def loss(z):
        return jnp.sin(z).sum() + z @ matrix @ z

    z, s = jnp.asarray([0.3, -1.0, 2.0, 0.7]), 0.1
    xi = s * jax.random.normal(jax.random.key(0), (200_000, 4))
    found = jax.vmap(lambda x: (loss(z + x) + loss(z - x)) / 2 - loss(z))(xi).mean()
    penalty = equations.laplacian_penalised(loss, z, s) - loss(z)
    laplacian = -jnp.sin(z).sum() + 2 * jnp.trace(matrix)
    np.testing.assert_allclose(penalty, s**2 / 2 * laplacian, rtol=1e-3)
    np.testing.assert_allclose(found, penalty, rtol=0.1)
