"""Calibration and risk-coverage curves, against closed forms and data whose truth is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit

from prosam_jax import calibration
from prosam_jax.calibration import Reliability


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_of_the_data_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(1, 4, 200_000)
    labels = rng.random(len(logits)) < expit(logits / temperature)
    found = calibration.fit_temperature(logits.reshape(400, 500), labels.reshape(400, 500))
    assert found == pytest.approx(temperature, rel=0.02)
    best = calibration.log_loss(logits, labels, found)
    for other in (0.9 * found, 1.1 * found):
        assert calibration.log_loss(logits, labels, other) > best


def test_a_temperature_in_closed_form():
    # Logits +-z that are right in 3 of 4 cases: sigmoid(z / T) = 3/4, so T = z / ln 3.
    logits = np.array([2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(2 / np.log(3), rel=1e-5)
    expected = -(3 * np.log(0.75) + np.log(0.25)) / 4
    assert calibration.log_loss(logits, labels, 2 / np.log(3)) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[True, False], [False, True], [True, True]])
def test_no_temperature_fits_labels_that_agree_always_or_never(labels):
    with pytest.raises(ValueError, match="no temperature"):
        calibration.fit_temperature(np.array([1.0, -1.0]), np.array(labels))


def test_log_loss_is_finite_for_large_logits():
    found = calibration.log_loss(np.array([1e4, -1e4, 1e4]), np.array([True, False, False]))
    assert found == pytest.approx(1e4 / 3)


def test_calibrated_values_have_almost_no_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.random(400_000)
    right = rng.random(len(p)) < p
    assert calibration.expected_calibration_error(p, right) < 0.005
    sure = calibration.expected_calibration_error(p**0.5, right)
    # E|sqrt(p) - p| of a uniform p is 2/3 - 1/2.
    assert sure == pytest.approx(1 / 6, abs=0.005)


def test_calibration_error_by_hand():
    predicted = np.array([0.1, 0.3, 0.6, 1.0])
    observed = np.array([0.0, 0.0, 1.0, 0.6])
    found = calibration.reliability(predicted, observed, bins=2)
    np.testing.assert_array_equal(found.weight, [2, 2])
    np.testing.assert_allclose(found.predicted, [0.4, 1.6])
    np.testing.assert_allclose(found.observed, [0, 1.6])
    assert found.error == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.1)
    ends = calibration.reliability(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), 2)
    np.testing.assert_array_equal(ends.weight, [1, 2])


def test_reliability_of_groups_adds_up():
    rng = np.random.default_rng(0)
    p, y = rng.random(60), rng.random(60)
    parts = [calibration.reliability(p[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    whole = Reliability(*(np.sum(x, 0) for x in zip(*parts, strict=True)))
    assert whole.error == pytest.approx(calibration.expected_calibration_error(p, y))
    draws = Reliability(*(np.stack(x) for x in zip(*parts, strict=True)))
    np.testing.assert_allclose(draws.error, [x.error for x in parts])


def test_risk_coverage_by_hand():
    score, loss = np.array([0.9, 0.1, 0.5, 0.5]), np.array([0.0, 1.0, 1.0, 0.0])
    found = calibration.risk_coverage(score, loss)
    np.testing.assert_allclose(found.coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(found.risk, [0, 1 / 3, 1 / 2])
    # Rates 0, 1/2, 1 on the three parts: the risk is (b + r (c - a)) / c from coverage a on.
    expected = (0.25 - 0.125 * np.log(3)) + (0.25 + (0.25 - 0.75) * np.log(4 / 3))
    assert calibration.aurc(score, loss) == pytest.approx(expected)


def test_the_area_is_that_of_the_curve():
    rng = np.random.default_rng(0)
    score, loss = rng.integers(0, 40, 300).astype(float), rng.random(300)
    repeated = 2000  # parts of each item, which make the curve almost continuous
    order = np.argsort(-score, kind="stable")
    tied = np.array([loss[score == s].mean() for s in score])  # random order, on average
    parts = np.repeat(tied[order], repeated)
    risk = parts.cumsum() / np.arange(1, len(parts) + 1)
    assert calibration.aurc(score, loss) == pytest.approx(risk.mean(), abs=1e-5)


@pytest.mark.parametrize("share", [0.03, 0.4])
def test_areas_of_the_oracle_of_chance_and_of_the_worst(share):
    wrong = np.arange(1000) < 1000 * share
    at_best = share + (1 - share) * np.log(1 - share)
    at_worst = share - share * np.log(share)
    assert calibration.aurc(-wrong.astype(float), wrong) == pytest.approx(at_best)
    assert calibration.aurc(wrong.astype(float), wrong) == pytest.approx(at_worst)
    assert calibration.aurc(np.zeros(1000), wrong) == pytest.approx(share)
    assert calibration.excess_aurc(-wrong.astype(float), wrong) == pytest.approx(0, abs=1e-12)
    assert calibration.excess_aurc(np.zeros(1000), wrong) == pytest.approx(share - at_best)
    chance = calibration.aurc(np.random.default_rng(0).random(1000), wrong)
    assert chance == pytest.approx(share, rel=0.2)


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    score, loss = rng.integers(0, 9, 30).astype(float), rng.random(30)
    times = rng.multinomial(30, np.full(30, 1 / 30), 4)
    found = calibration.aurc(score, loss, times.astype(float))
    excess = calibration.excess_aurc(score, loss, times.astype(float))
    for i, n in enumerate(times):
        again = np.repeat(score, n), np.repeat(loss, n)
        assert found[i] == pytest.approx(calibration.aurc(*again))
        assert excess[i] == pytest.approx(calibration.excess_aurc(*again))
    curve = calibration.risk_coverage(score, loss, times.astype(float))
    np.testing.assert_allclose(curve.risk[:, -1], (times * loss).sum(1) / 30)


def test_expected_iou_of_sure_pixels_is_one():
    logits = jnp.asarray([[[90.0, -90.0], [-90.0, 90.0]], [[1e4, 1e4], [1e4, 1e4]]])
    np.testing.assert_allclose(calibration.expected_iou(logits), 1, atol=1e-6)


def test_expected_iou_by_hand():
    logits = jnp.asarray([[[1.0, 2.0, -1.0, 0.0]], [[-1.0, -90.0, -2.0, -3.0]]])
    p = expit(np.array([1.0, 2.0, -1.0, 0.0]))
    expected = [(p[0] + p[1]) / (2 + p[2] + p[3]), 0]
    np.testing.assert_allclose(calibration.expected_iou(logits), expected, rtol=1e-6)
    assert calibration.expected_iou(jnp.full((1, 2, 2), -1e4)) == 0


def test_expected_iou_is_the_mean_iou_of_masks_with_these_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 20, 20))
    truth = rng.random((2000, *logits.shape)) < expit(logits)
    mask = logits > 0
    iou = (truth & mask).sum((2, 3)) / (truth | mask).sum((2, 3))
    found = jax.jit(calibration.expected_iou)(logits.astype(np.float32))
    np.testing.assert_allclose(found, iou.mean(0), atol=2e-3)
    colder = calibration.expected_iou(jnp.asarray(logits / 3, jnp.float32))
    assert (colder < found).all()


def test_entropy_is_in_bits():
    logits = np.array([0.0, 1e4, -1e4, 90.0, 2.0, -2.0], np.float32)
    of_two = scipy.stats.entropy([expit(2.0), expit(-2.0)], base=2)
    expected = [1, 0, 0, 0, of_two, of_two]
    np.testing.assert_allclose(calibration.entropy(logits), expected, atol=1e-6)
    near = calibration.entropy(np.linspace(-0.01, 0.01, 10_001, dtype=np.float32))
    assert near.dtype == np.float32 and near.max() == 1
