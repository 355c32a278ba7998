"""What the study of uncertainty computes, against plain loops and the functions it approximates."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from prosam_jax import calibration
from studies import uncertainty_measures as measures
from studies import uncertainty_runs as runs
from studies.uncertainty_runs import BOTH, CERTAINTY, ENTROPY, EXPECTED, SEED_PAIRS, SEEDS, Found


def model(seed, n=6):
    """Masks of noise with errors that the logits know about, two episodes a picture."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).random((n, 16, 16)) < 0.4
    logits = np.where(truth, 2, -2) + 3 * rng.standard_normal(truth.shape)
    logits = logits.astype(np.float32)
    found = Found(
        temperature={},
        target=np.arange(n) // 2,
        truth=truth,
        logits=logits,
        levels={},
        masks={EXPECTED: np.asarray(calibration.expected_iou(jnp.asarray(logits)))},
        reliability={"none": runs.per_picture(expit(logits), truth)},
        log_loss={"none": runs.log_loss(expit(logits), truth)},
    )
    entropy = calibration.entropy(logits)
    found.levels[ENTROPY] = runs.levelled(entropy, found.wrong)
    found.masks[CERTAINTY] = -entropy.mean((1, 2))
    return found


def test_levels_of_scores_keep_their_area():
    one = model(0)
    exact = calibration.aurc(-calibration.entropy(one.logits).ravel(), one.wrong.ravel())
    e = one.wrong.mean()
    oracle = e + (1 - e) * np.log(1 - e)
    expected = (exact - oracle) / (e - oracle)
    found = measures.pixel_area(ENTROPY, one, np.ones((1, 6)))
    assert 0.1 < expected < 0.9
    assert found[0] == pytest.approx(expected, abs=0.01)
    assert one.levels[ENTROPY][:, 0].sum(1).tolist() == [256] * 6
    zero = runs.levelled(np.zeros((1, 2, 2)), np.ones((1, 2, 2), bool))
    assert zero[0, :, 0].tolist() == [4, 4]


def test_draws_are_of_pictures_and_the_first_row_is_the_result():
    one = model(0)
    drawn = measures.Drawn.of(one.target, 2, 0)
    np.testing.assert_array_equal(drawn.episodes[0], 1)
    np.testing.assert_array_equal(drawn.episodes[:, ::2], drawn.episodes[:, 1::2])
    np.testing.assert_allclose(drawn.seeds.sum(1), 1)
    np.testing.assert_array_equal(drawn.episodes.sum(1), 6)
    other = model(1)
    folds = [(drawn, [one, other])]
    found = measures.averaged(folds, measures.mean_iou)
    assert found[0] == pytest.approx((one.iou.mean() + other.iou.mean()) / 2)
    again = drawn.episodes[7] @ np.stack([one.iou, other.iou], axis=1) / 6
    assert found[7] == pytest.approx(drawn.seeds[7] @ again)
    numbers = measures.measured(folds, [ENTROPY], [CERTAINTY, EXPECTED])
    assert numbers["pixels"][ENTROPY]["difference"] == [0, 0, 0]
    value, low, high = numbers["mean IoU"]
    assert low < value < high
    p = expit(one.logits.astype(float)), expit(other.logits.astype(float))
    errors = [
        calibration.expected_calibration_error(
            np.maximum(x, 1 - x).ravel(), ((x > 0.5) == one.truth).ravel(), runs.PIXEL_BINS
        )
        for x in p
    ]
    assert numbers["calibration of pixels"]["none"]["ECE"][0] == pytest.approx(
        np.mean(errors), abs=1e-4
    )


def test_reliability_of_masks_is_over_all_models():
    models = [model(0), model(1)]
    folds = [(measures.Drawn.of(models[0].target, 2, 0), models)]
    found = measures.mask_reliability(EXPECTED, folds)
    predicted = np.concatenate([x.masks[EXPECTED] for x in models]).astype(float)
    observed = np.concatenate([x.iou for x in models])
    expected = calibration.reliability(predicted, observed, runs.MASK_BINS)
    assert found.error[0] == pytest.approx(expected.error, rel=1e-4)
    assert found.bias[0] == pytest.approx(expected.bias, rel=1e-4)


def test_pairs_of_masks():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 2, 5, 5)).astype(np.float32)
    logits[:2, 1] = -1  # two empty masks
    masks = logits > 0
    pairs = [runs.iou(masks[i], masks[j]) for i, j in itertools.combinations(range(4), 2)]
    found = runs.pairwise_iou(jnp.asarray(logits))
    np.testing.assert_allclose(found, np.mean(pairs, axis=0), rtol=1e-5)
    by_hand = [np.array([[True, True, False]]), np.array([[False, True, True]])]
    assert runs.iou(*by_hand) == pytest.approx(1 / 3)


def test_given_masks_are_promised_what_their_own_would_be():
    one = model(0)
    found = runs.promised(expit(one.logits), one.logits > 0)
    np.testing.assert_allclose(found, one.masks[EXPECTED], rtol=1e-5)


def test_seeds_together():
    models = [model(i) for i in range(3)]
    runs.with_seeds(models)
    p = np.mean([expit(x.logits.astype(float)) for x in models], axis=0)
    joined = runs.ensemble(models)
    np.testing.assert_allclose(joined.logits, logit(p), atol=1e-4)
    np.testing.assert_array_equal(joined.wrong, (p > 0.5) != joined.truth)
    assert models[0].levels.keys() == {ENTROPY, BOTH, SEEDS} and joined.levels.keys() == {ENTROPY}
    for one in models:  # the same maps, each with the errors of its own masks
        np.testing.assert_array_equal(one.levels[BOTH][:, 0], joined.levels[ENTROPY][:, 0])
        assert one.levels[BOTH][:, 1].sum() == one.wrong.sum()
        assert 0 < one.masks[SEED_PAIRS].min() < one.masks[SEED_PAIRS].max() < 1
    assert joined.wrong.mean() < min(x.wrong.mean() for x in models)
