"""Pure functions of inference; `test_segmenter.py` compares whole predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, xlogy

from prosam_jax import inference


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
