"""Second derivatives against closed forms and PyTorch's, and Proposition 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import told
from sam_pairs import CFG, pair

from prosam_jax import curvature, equations
from prosam_jax.errors import UserError


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues, in a random basis."""
    n = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return jnp.asarray(basis * np.asarray(eigenvalues) @ basis.T, jnp.float32)


def quadratic(matrix):
    """A loss of (2, n / 2) prompts with a gradient and this Hessian everywhere."""

    def loss(p):
        x = p.ravel()
        return x @ matrix @ x / 2 + x.sum() + 0.5

    return loss


EIGENVALUES = np.concatenate([[30.0, -20.0, 10.0], np.linspace(-1, 2, 21)])
LOSS = quadratic(symmetric(EIGENVALUES))
AT = jax.random.normal(jax.random.key(5), (2, 12))


def quartic(p):
    return (p**4).sum() / 24


def test_hessian_vector_product():
    v = jax.random.normal(jax.random.key(1), AT.shape)
    got = curvature.hessian_vector(LOSS, AT, v)
    np.testing.assert_allclose(got.ravel(), symmetric(EIGENVALUES) @ v.ravel(), atol=1e-4)
    np.testing.assert_allclose(
        curvature.hessian_vector(quartic, AT, v), AT**2 / 2 * v, rtol=1e-5, atol=1e-6
    )


def test_laplacian():
    assert curvature.laplacian(LOSS, AT) == pytest.approx(EIGENVALUES.sum(), abs=1e-3)
    assert curvature.laplacian(quartic, AT) == pytest.approx(float((AT**2).sum() / 2), rel=1e-5)
    by_hand = equations.laplacian_penalised(quartic, AT.ravel(), 0.3)
    penalty = 0.3**2 / 2 * curvature.laplacian(quartic, AT)
    assert by_hand == pytest.approx(float(quartic(AT) + penalty), rel=1e-5)


def test_a_sigma_for_each_coordinate():
    """Half the trace of H diag(sigma^2), by the loss of z -> p + sigma z."""
    sigma = jnp.linspace(0.1, 2, AT.size).reshape(AT.shape)
    got = curvature.laplacian(lambda z: LOSS(AT + sigma * z), jnp.zeros_like(AT))
    expected = (jnp.diag(symmetric(EIGENVALUES)) * sigma.ravel() ** 2).sum()
    assert got == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", [curvature.hutchinson, curvature.hutch_plus_plus])
def test_random_traces_are_unbiased_and_know_their_error(method):
    """Over 400 keys: errors have mean 0, and the size that is stated."""
    run = jax.jit(lambda key: method(LOSS, AT, key, 24))
    value, error = jax.vmap(run)(jax.random.split(jax.random.key(2), 400))
    off = np.asarray(value) - EIGENVALUES.sum()
    assert abs(off.mean()) < 3 * off.std() / 20
    assert np.sqrt((np.asarray(error) ** 2).mean()) == pytest.approx(off.std(), rel=0.15)


def test_hutchinsons_error_is_the_closed_forms():
    """Its variance for one vector of signs is twice the squares off the diagonal."""
    matrix = np.asarray(symmetric(EIGENVALUES))
    variance = 2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum())
    found = curvature.hutchinson(LOSS, AT, jax.random.key(3), 4000)
    assert found.error == pytest.approx((variance / 4000) ** 0.5, rel=0.05)


def test_a_diagonal_needs_one_vector_of_signs():
    found = curvature.hutchinson(quartic, AT, jax.random.key(3), 2)
    assert found.value == pytest.approx(float((AT**2).sum() / 2), rel=1e-5)
    assert found.error == pytest.approx(0, abs=1e-5)


def test_hutch_plus_plus_is_exact_for_low_rank():
    """Rank 3 with 9 products, where Hutchinson's estimate is off."""
    low = quadratic(symmetric([30.0, -20.0, 10.0] + [0.0] * 21))
    found = curvature.hutch_plus_plus(low, AT, jax.random.key(4), 9)
    assert found.value == pytest.approx(20, abs=1e-3)
    assert found.error < 1e-3
    assert abs(curvature.hutchinson(low, AT, jax.random.key(4), 9).value - 20) > 1


def test_hutch_plus_plus_has_the_smaller_error():
    keys = jax.random.split(jax.random.key(6), 200)
    spread = [
        jax.vmap(lambda key, f=f: f(LOSS, AT, key, 24).value)(keys).std()
        for f in (curvature.hutch_plus_plus, curvature.hutchinson)
    ]
    assert spread[0] < 0.5 * spread[1]


def test_eigenvalues():
    product = jax.jit(lambda v: curvature.hessian_vector(LOSS, AT, v))
    np.testing.assert_allclose(curvature.eigenvalues(product, AT, 3), [30, -20, 10], rtol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "variance"), [("gaussian", 1.0), ("student_t", 5 / 3), ("t3vae", 5 / 11)]
)
def test_variance_of_the_noise(sampler, variance):
    """The covariance is a multiple of diag(sigma^2), though delta is shared."""
    assert curvature.noise_variance(sampler, 5, 8) == pytest.approx(variance)
    sigma = jnp.linspace(0.5, 2, 16).reshape(2, 8)
    x = curvature.draw_displacements(jax.random.key(7), sigma, 100_000, sampler=sampler, nu=5)
    covariance = jnp.cov((x / sigma[None]).reshape(len(x), -1).T)
    np.testing.assert_allclose(covariance, variance * np.eye(16), atol=0.05)


def test_too_heavy_tails_have_no_variance():
    assert curvature.noise_variance("student_t", 2, 8) == float("inf")
    with pytest.raises(UserError) as error:
        curvature.noise_variance("cauchy", 5, 8)
    told(error, "cauchy", "student_t")


@pytest.mark.parametrize("sampler", ["gaussian", "student_t"])
def test_proposition_1_is_exact_for_a_quadratic(sampler):
    sigma = jnp.linspace(0.1, 0.3, 24).reshape(2, 12)
    x = curvature.draw_displacements(jax.random.key(8), sigma, 40_000, sampler=sampler, nu=5)
    gaps = curvature.gaps(LOSS, AT, x)
    np.testing.assert_allclose(gaps, curvature.second_order(LOSS, AT, x), rtol=2e-3, atol=2e-3)
    measured = curvature.estimate(gaps)
    scaled = curvature.laplacian(lambda z: LOSS(AT + sigma * z), jnp.zeros_like(AT))
    predicted = curvature.noise_variance(sampler, 5, 12) / 2 * scaled
    assert abs(measured.value - predicted) < 3 * measured.error
    assert measured.error < 0.1 * abs(predicted)


def test_antithetic_pairs_measure_a_small_gap():
    """The gradient, which would hide it, cancels: the error falls with s^2, not with s."""
    x = jax.random.normal(jax.random.key(9), (500, *AT.shape))
    errors = []
    for s in (0.1, 0.01):
        pairs = curvature.estimate(curvature.gaps(LOSS, AT, s * x)).error
        single = curvature.estimate(jax.vmap(LOSS)(AT[None] + s * x) - LOSS(AT)).error
        errors.append((pairs, single))
    (pairs, single), (pairs_closer, single_closer) = errors
    assert single / single_closer == pytest.approx(10, rel=0.1)
    assert pairs / pairs_closer == pytest.approx(100, rel=0.1)
    assert pairs_closer < 0.02 * single_closer


@pytest.mark.parametrize("sampler", ["gaussian", "student_t"])
def test_the_remainder_of_a_quartic_is_of_the_fourth_order(sampler):
    """Of sum p^4 / 24 it is s^4 / 24 E sum x^4: with E = 3 n for Gaussian noise."""
    ones = jnp.ones_like(AT)
    x = curvature.draw_displacements(jax.random.key(10), ones, 20_000, sampler=sampler, nu=5)
    for s in (0.5, 1.0):
        remainder = curvature.gaps(quartic, AT, s * x) - curvature.second_order(quartic, AT, s * x)
        np.testing.assert_allclose(remainder, s**4 * (x**4).sum((1, 2)) / 24, rtol=0.02, atol=1e-3)
        if sampler == "gaussian":  # with nu = 5 the fourth power has no variance
            found = curvature.estimate(remainder)
            assert abs(found.value - s**4 * 3 * AT.size / 24) < 3 * found.error


@pytest.mark.slow
def test_a_mask_decoders_hessian_is_torchs():
    """SAM's decoder in float32 with random weights: compiling its second derivatives takes long."""
    oracle, sam = pair(CFG, 0)
    h, w = CFG.embedding_size
    rng = np.random.default_rng(11)
    image = rng.standard_normal((1, h, w, 256)).astype(np.float32)
    base = rng.standard_normal((1, 2, 256)).astype(np.float32)
    directions = rng.standard_normal((6, 2, 256)).astype(np.float32)
    truth = jnp.asarray(rng.random((1, 4 * h, 4 * w)) > 0.5)

    def loss(z):  # in six of the prompts' dimensions
        prompts = base + jnp.einsum("i,iqc->qc", z, directions)[None]
        sparse, dense = sam.prompt_encoder(prompts=prompts)
        masks, _ = sam.decode(jnp.asarray(image), sparse, dense)
        return equations.mask_loss(masks[:, 0], truth)

    def torch_loss(z):
        prompts = torch.from_numpy(base) + torch.einsum(
            "i,iqc->qc", z, torch.from_numpy(directions)
        )
        dense = oracle.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, h, w)
        masks, _ = oracle.mask_decoder(
            torch.from_numpy(image).permute(0, 3, 1, 2),
            oracle.prompt_encoder.get_dense_pe(),
            prompts,
            dense,
            False,
        )
        logits, target = masks[:, 0], torch.from_numpy(np.array(truth)).float()
        bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        p = logits.sigmoid()
        return bce + 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)

    z = jnp.zeros(6)
    expected = torch.autograd.functional.hessian(torch_loss, torch.zeros(6)).numpy()
    assert np.abs(expected).max() > 1e-3
    product = jax.jit(lambda v: curvature.hessian_vector(loss, z, v))
    got = np.stack([product(v) for v in jnp.eye(6)])
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())
    assert curvature.laplacian(loss, z) == pytest.approx(np.trace(expected), rel=1e-3)
