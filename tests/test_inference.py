"""Pure functions of inference; `test_segmenter.py` compares whole predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit, xlogy

from prosam_jax import inference
from studies import uncertainty


def test_disagreement_is_mutual_information():
    rng = np.random.default_rng(0)
    logits = (6 * rng.standard_normal((7, 2, 3, 5))).astype(np.float32)

    def entropy(p):
        return -(xlogy(p, p) + xlogy(1 - p, 1 - p)) / np.log(2)

    p = expit(logits.astype(np.float64))
    expected = entropy(p.mean(0)) - entropy(p).mean(0)
    found = jax.jit(inference.disagreement)(logits)
    assert found.shape == (2, 3, 5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ((90, -90, 90, -90), 1),
        ((1e4, -1e4), 1),
        ((90, 90, 90), 0),
        ((0, 0, 0, 0, 0), 0),
        ((0.3, 0.3, 0.3), 0),
        ((-1e4, -1e4), 0),
    ],
    ids=str,
)
def test_disagreement_at_its_ends(logits, expected):
    found = inference.disagreement(jnp.asarray(logits, jnp.float32).reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-6)


def test_confidence_is_the_mean_probability_inside():
    logits = jnp.asarray([[[1.0, 3.0, -2.0]], [[-1.0, -5.0, 0.0]]])
    expected = [(expit(1.0) + expit(3.0)) / 2, 0]
    np.testing.assert_allclose(inference.confidence(logits), expected, atol=1e-6)


def test_ranks_are_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (2, 50)).astype(np.float32)  # with ties
    expected = scipy.stats.spearmanr(a, b).statistic
    assert uncertainty.rank_correlation(a, b) == pytest.approx(expected)
    wrong = rng.random(50) > 0.7
    pairs = a[wrong][:, None] - a[~wrong][None]
    area = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert uncertainty.roc_area(a, wrong) == pytest.approx(area)
