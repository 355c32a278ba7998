"""The bootstrap, against closed forms and simulations."""

import hashlib

import numpy as np
import pytest
import scipy.stats

from prosam_jax.evaluation import intervals, metrics
from prosam_jax.evaluation.intervals import Interval, Listed


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _draws(counts, class_id, target, digest, absent=()):
    return intervals.draws([Listed(counts, class_id, target)], digest, absent)


def _apart(counts):
    """Each episode has a picture of its own."""
    return np.arange(len(counts))


def _episodes(rng, n, classes=1, mean=0.6, spread=0.25):
    """Episodes of 100 object pixels each, of which a random share is found."""
    tp = np.round(100 * np.clip(rng.normal(mean, spread, n), 0, 1)).astype(int)
    counts = np.stack([tp, np.zeros_like(tp), 100 - tp, np.full(n, 300)], axis=1)
    return counts, rng.integers(1, 1 + classes, n)


def test_one_class_has_the_standard_error_of_a_mean():
    """With unions of one size the IoU is a mean, whose bootstrap error is s / sqrt(n)."""
    counts, class_id = _episodes(np.random.default_rng(0), 400)
    drawn = _draws(counts, class_id, _apart(counts), _digest("a")).miou
    assert drawn.mean() == pytest.approx(metrics.scores(counts, class_id).miou, abs=0.002)
    error = (counts[:, 0] / 100).std() / 400**0.5
    assert drawn.std() == pytest.approx(error, rel=0.06)
    low, high = intervals.interval(drawn)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_draws_are_scores_of_episodes_drawn_again():
    counts, class_id = _episodes(np.random.default_rng(1), 12, classes=3)
    digest = _digest("b")
    drawn = _draws(counts, class_id, _apart(counts), digest, absent=[2, 9])
    times = np.random.default_rng(int(digest, 16)).multinomial(12, [1 / 12] * 12, intervals.DRAWS)
    for k in (0, 5, 1999):
        again = np.repeat(np.arange(12), times[k])
        one = metrics.scores(counts[again], class_id[again], absent=[2, 9])
        assert drawn.miou[k] == pytest.approx(one.miou)
        assert drawn.fb_iou[k] == pytest.approx(one.fb_iou)
        assert drawn.shares[k] == pytest.approx(one.shares)


def test_a_class_that_a_draw_lacks_does_not_count_in_it():
    """Unless it is said to count as 0."""
    counts = np.array([[50, 0, 50, 0]] * 3 + [[100, 0, 0, 0]])
    of = counts, np.array([1, 1, 1, 2]), _apart(counts), _digest("f")
    left_out = _draws(*of).miou
    assert set(left_out.round(6)) == {0.5, 0.75, 1.0}
    as_zero = _draws(*of, absent=[1, 2]).miou
    assert set(as_zero.round(6)) == {0.25, 0.75, 0.5}


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Of 300 lists of 200 episodes, about 95 % have the mean of the whole population inside."""
    rng = np.random.default_rng(2)
    pool, class_id = _episodes(rng, 200_000, classes=5)
    truth = metrics.scores(pool, class_id).miou
    inside = 0
    for i in range(300):
        chosen = rng.integers(0, len(pool), 200)
        low, high = intervals.interval(
            _draws(pool[chosen], class_id[chosen], chosen, _digest(str(i))).miou
        )
        inside += low <= truth <= high
    assert 0.91 <= inside / 300 <= 0.98


def _pictures(rng, n, episodes):
    """Pictures that differ in how hard they are, with some episodes each, which are alike."""
    hard = np.repeat(np.clip(rng.normal(0.6, 0.2, n), 0.1, 0.9), episodes)
    tp = rng.binomial(100, hard)
    counts = np.stack([tp, np.zeros_like(tp), 100 - tp, np.full(len(tp), 300)], axis=1)
    return counts, np.ones(len(tp), int), np.repeat(np.arange(n), episodes)


def test_episodes_of_one_picture_are_drawn_together():
    """With three episodes a picture, the error is that of the means of pictures."""
    counts, class_id, picture = _pictures(np.random.default_rng(5), 300, 3)
    drawn = _draws(counts, class_id, picture, _digest("e")).miou
    of_pictures = (counts[:, 0] / 100).reshape(300, 3).mean(1)
    assert drawn.std() == pytest.approx(of_pictures.std() / 300**0.5, rel=0.06)
    alone = _draws(counts, class_id, _apart(counts), _digest("e")).miou
    assert drawn.std() > 1.5 * alone.std()  # near the square root of 3


@pytest.mark.slow
def test_intervals_cover_the_truth_where_pictures_repeat():
    rng = np.random.default_rng(6)
    counts, class_id, picture = _pictures(rng, 20_000, 3)
    truth, inside = metrics.scores(counts, class_id).miou, 0
    for i in range(300):
        chosen = (3 * rng.integers(0, 20_000, 80)[:, None] + np.arange(3)).ravel()
        of = counts[chosen], class_id[chosen], picture[chosen]
        low, high = intervals.interval(_draws(*of, _digest(str(i))).miou)
        inside += low <= truth <= high
    assert 0.91 <= inside / 300 <= 0.98


def test_two_methods_on_one_list_are_drawn_together():
    rng = np.random.default_rng(3)
    counts, class_id = _episodes(rng, 300, classes=4, mean=0.5, spread=0.2)
    better = counts + np.array([2, 0, -2, 0]) * (counts[:, :1] <= 98) * (counts[:, 2:3] >= 2)
    one, other = (_draws(x, class_id, _apart(x), _digest("c")).miou for x in (better, counts))
    apart = _draws(counts, class_id, _apart(counts), _digest("d")).miou
    low, high = intervals.interval(one - other)
    assert 0.015 < low < high < 0.021  # 0.02 everywhere but at the ends
    assert np.ptp(intervals.interval(one - apart)) > 10 * (high - low)


def test_lists_are_averaged():
    """With pictures of their own, which are drawn independently."""
    rng = np.random.default_rng(4)
    lists = [Listed(*_episodes(rng, 200), 200 * i + np.arange(200)) for i in range(4)]
    drawn = intervals.draws(lists, _digest("0")).miou
    means = [metrics.scores(one.counts, one.class_id).miou for one in lists]
    assert drawn.mean() == pytest.approx(np.mean(means), abs=0.002)
    alone = [intervals.draws([one], _digest(str(i))).miou.std() for i, one in enumerate(lists)]
    assert drawn.std() == pytest.approx(np.mean(alone) / 2, rel=0.1)


def test_lists_of_the_same_pictures_are_drawn_together():
    """More lists of a fold's pictures make an interval hardly narrower."""
    counts, class_id, picture = _pictures(np.random.default_rng(7), 100, 5)
    lists = [Listed(counts[i::5], class_id[i::5], picture[i::5]) for i in range(5)]
    together = intervals.draws(lists, _digest("g")).miou
    of_pictures = (counts[:, 0] / 100).reshape(100, 5).mean(1)
    assert together.std() == pytest.approx(of_pictures.std() / 10, rel=0.06)


def test_seeds_alone_have_students_interval():
    seeds = np.array([48.0, 50.5, 49.0])
    found = intervals.over_seeds(Interval(seeds.mean(), seeds.mean()), [seeds])
    law = scipy.stats.t(2, seeds.mean(), scipy.stats.sem(seeds))
    np.testing.assert_allclose(found, law.interval(0.95), rtol=1e-12)
    assert intervals.over_seeds(Interval(1, 2), [seeds[:1], seeds[:1]]) is None


def test_pictures_and_seeds_are_joined_on_each_side():
    """Two folds whose seeds have a variance of 2; the mean of four has the error 1 / sqrt(2)."""
    folds = [np.array([10.0, 12.0]), np.array([30.0, 32.0])]
    reach = scipy.stats.t.ppf(0.975, 2) / np.sqrt(2)
    found = intervals.over_seeds(Interval(20, 24), folds)
    np.testing.assert_allclose(found, [21 - np.hypot(1, reach), 21 + np.hypot(3, reach)])


def test_intervals_over_seeds_cover_the_truth():
    """Errors of pictures, shared by the seeds of a fold, and of seeds, both unknown beforehand."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(2_000):
        pictures = rng.normal(0, 0.5, 4)
        folds = [10 * f + x + rng.normal(0, 1.2, 3) for f, x in enumerate(pictures)]
        centre, reach = np.mean(folds), 1.96 * 0.5 / 2
        low, high = intervals.over_seeds(Interval(centre - reach, centre + reach), folds)
        held += low <= 15 <= high
    assert 0.94 < held / 2_000 < 0.97
