"""The flatness study's statistics and measures, against closed forms and known samples."""

import itertools
import json
import pathlib
import shutil

import finished_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import told

from prosam_jax import curvature, equations
from prosam_jax.config import replaced, to_dict
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate
from prosam_jax.model import load
from studies import bootstrap, flatness, flatness_figures, flatness_measures, flatness_runs
from studies import flatness_statistics as statistics

RNG = np.random.default_rng(0)
LIKE = jnp.zeros((2, 12))


def drawn(n, seeds=1, draws=2000, targets=None):
    targets = np.arange(n) if targets is None else targets
    return bootstrap.draw(targets, seeds, draws, np.random.default_rng(1))


# Draws.


def test_the_first_row_is_the_sample():
    got = drawn(7, 3)
    assert (got.episodes[0] == 1).all() and (got.seeds[0] == 1).all()
    assert (got.episodes.sum(1) == 7).all() and (got.seeds.sum(1) == 3).all()
    assert len(np.unique(got.episodes, axis=0)) > 500


def test_episodes_of_one_picture_are_drawn_together():
    got = drawn(4, targets=np.array(["a", "b", "a", "c"]))
    assert (got.episodes[:, 0] == got.episodes[:, 2]).all()
    assert (got.episodes[:, [0, 1, 3]].sum(1) == 3).all()
    assert (got.episodes[:, 0] != got.episodes[:, 1]).any()


def test_runs_that_are_not_drawn_again_count_alike():
    got = drawn(5, 0)
    assert got.seeds.shape == (2001, 0)
    x = RNG.standard_normal((2, 5))
    np.testing.assert_allclose(statistics.mean([x], [got])[0], x.mean())
    once = got._replace(seeds=np.ones((2001, 2), int))
    np.testing.assert_allclose(statistics.mean([x], [got]), statistics.mean([x], [once]))


def test_the_interval_of_a_mean_is_the_normal_one():
    """Of 400 values: 1.96 standard errors on both sides."""
    x = RNG.standard_normal((1, 400))
    value, low, high = statistics.stated(statistics.mean([x], [drawn(400)]))
    half = 1.96 * x.std() / 20
    assert value == pytest.approx(x.mean(), abs=1e-4)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.15 * half)


def test_seeds_widen_the_interval():
    """With values of the seed alone, the spread is that of means of three drawn seeds."""
    x = np.array([0.0, 1.0, 5.0])[:, None] * np.ones((1, 50))
    got = statistics.mean([x], [drawn(50, 3)])
    assert got[1:].std() == pytest.approx(x[:, 0].std() / 3**0.5, rel=0.05)
    means = {round(sum(of) / 3, 6) for of in itertools.product((0, 1, 5), repeat=3)}
    assert set(got.round(6)) == means


def test_folds_have_the_same_weight():
    folds = [np.ones((1, 2)), np.zeros((3, 10))]
    got = statistics.mean(folds, [drawn(2), drawn(10, 3)])
    np.testing.assert_allclose(got, 0.5)


# Statistics.


def test_miou_of_the_sample_and_of_a_draw():
    """Pixels are summed over a class's episodes; a class that is not drawn does not count."""
    counts = np.array([[8, 1, 1, 0], [2, 4, 4, 0], [3, 0, 7, 0]])[None, :, None]  # s n l 4
    times = np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]])
    of = bootstrap.Drawn(times, np.ones((3, 1), int))
    got = statistics.miou([counts], [np.array([5, 5, 9])], [of])
    np.testing.assert_allclose(got[:, 0], [(10 / 20 + 3 / 10) / 2, 24 / 30, (2 / 10 + 3 / 10) / 2])


def test_miou_of_perturbed_prompts_keeps_their_order():
    good, bad = [9, 1, 0, 0], [1, 4, 5, 0]
    counts = np.array([[[good, bad]] * 6] * 2)
    got = statistics.miou([counts], [np.arange(6) % 2], [drawn(6, 2, 20)])
    np.testing.assert_allclose(got, np.tile([0.9, 0.1], (21, 1)))


def test_signed_ratio():
    predicted = RNG.standard_normal((3, 40, 2))
    sign = np.sign(predicted[..., 0])
    got = statistics.signed_ratio([1.5 * predicted], [predicted], [sign], [drawn(40, 3)])
    np.testing.assert_allclose(got, 1.5)
    # Where a plain mean of both signs would cancel, noise of mean 0 hardly moves it.
    balanced = np.where(np.arange(400) % 2, 1.0, -1.0)[None]
    noisy = balanced + 0.1 * RNG.standard_normal((1, 400))
    value, low, high = statistics.stated(
        statistics.signed_ratio([noisy], [balanced], [balanced], [drawn(400)])
    )
    assert low < 1 < high and high - low < 0.03 and value == pytest.approx(1, abs=0.02)


def test_relative_error():
    predicted = np.array([[1.0, -1.0, 2.0]])
    measured = np.array([[1.5, -1.0, 1.0]])
    got = statistics.relative_error([measured], [predicted], [drawn(3)])
    assert got[0] == pytest.approx(1.5 / 4)


def test_median_is_numpys_and_weighs_draws():
    x = RNG.standard_normal((3, 11))
    of = drawn(11, 3, 50)
    got = statistics.median([x], [of])
    for i in range(51):
        again = np.repeat(np.repeat(x, of.seeds[i], 0), of.episodes[i], 1)
        assert got[i] == np.median(again)


def test_spearman_is_scipys():
    a, b = RNG.integers(0, 6, (2, 30)).astype(float)
    assert statistics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert statistics.spearman(a, -a) == pytest.approx(-1)
    assert statistics.spearman(a, np.ones(30)) == 0


def test_within_runs():
    """The mean of the runs' correlations, not the correlation of all together."""
    iou = np.stack([np.linspace(0, 1, 20), np.linspace(5, 6, 20)])
    flat = -iou + np.array([[0], [20]])  # falls within each run, rises from one to the other
    assert statistics.spearman(flat.ravel(), iou.ravel()) > 0
    np.testing.assert_allclose(statistics.within_runs([flat], [iou], [drawn(20, 2, 30)]), -1)


def test_across_runs_and_of_means():
    """A hard episode moves all runs alike and does not count; the better run is the flatter."""
    hard = 10 * RNG.standard_normal(15)
    run = np.arange(6.0).reshape(2, 3)
    iou, laplacian = run[..., None] + hard, -run[..., None] + 3 * hard
    assert statistics.within_runs([laplacian[0]], [iou[0]], [drawn(15, 3, 5)])[0] == 1
    for statistic in (statistics.across_runs, statistics.of_means):
        np.testing.assert_allclose(statistic([laplacian], [iou], [drawn(15, 3, 30)]), -1)


def test_no_relation_has_an_interval_around_zero():
    flat, iou = RNG.standard_normal((2, 2, 3, 60))
    for statistic, x, y in (
        (statistics.within_runs, flat[0], iou[0]),
        (statistics.across_runs, flat, iou),
    ):
        _, low, high = statistics.stated(statistic([x], [y], [drawn(60, 3, 300)]))
        assert low < 0 < high


def test_split_mean():
    x = np.array([[1.0, 2.0, 30.0], [4.0, 50.0, 60.0]])
    got = statistics.split_mean([x, x + 1], [x < 10, x < 10], [drawn(3, 2, 10)] * 2)
    assert got[0] == pytest.approx(np.mean([1, 2, 4, 2, 3, 5]))


# Measures.


def quadratic(seed=3):
    """A loss with a gradient and a Hessian of both signs, and the Hessian."""
    half = np.random.default_rng(seed).standard_normal((24, 24)).astype(np.float32)
    matrix = jnp.asarray(half + half.T + 3 * np.eye(24, dtype=np.float32))

    def loss(z):
        return z.ravel() @ matrix @ z.ravel() / 2 + z.sum() + 0.7

    return loss, matrix


def test_a_quadratics_ratio_is_1_at_every_share():
    loss, matrix = quadratic()
    shares = jnp.array([0.05, 0.3, 1.0])
    found = flatness_measures.gaps_and_second(
        lambda x, s: flatness_measures.gap_at(loss, x, s),
        lambda x: curvature.second_order(loss, LIKE, x),
        jax.random.key(0),
        LIKE,
        shares,
        4000,
    )
    assert found["gap"].shape == (2, 3)
    np.testing.assert_allclose(
        found["gap"], np.outer(found["second"], shares**2), rtol=5e-3, atol=1e-4
    )
    # Both noises have variance 1, so both see half the Laplacian.
    np.testing.assert_allclose(found["second"], float(jnp.trace(matrix)) / 2, rtol=0.08)


def test_a_quartic_is_above_its_prediction_by_the_fourth_moment():
    """Of z^2 / 2 + z^4 / 24 in each coordinate: s^2 / 2 + s^4 / 8 for Gaussian noise."""

    def loss(z):
        return (z**2 / 2 + z**4 / 24).sum()

    found = flatness_measures.gaps_and_second(
        lambda x, s: flatness_measures.gap_at(loss, x, s),
        lambda x: curvature.second_order(loss, LIKE, x),
        jax.random.key(1),
        LIKE,
        jnp.array([1.0]),
        4000,
    )
    assert found["gap"][0, 0] / found["second"][0] == pytest.approx(1.25, rel=0.02)


def test_the_smooth_part_is_all_but_the_kinks():
    """Of a smooth loss the whole gap; of a ReLU, which opens one on average, nothing."""
    x = jax.random.normal(jax.random.key(7), (5, *LIKE.shape))
    shares = jnp.array([0.5, 1.0])

    def smooth(z):
        return (z**2 / 2 + z**4 / 24 + z).sum()

    def bent(z):
        return smooth(z) + jax.nn.relu(z - 0.1).sum()

    whole = flatness_measures.gap_at(smooth, x, shares)
    np.testing.assert_allclose(flatness_measures.smooth_gap(smooth, x, shares), whole, rtol=1e-3)
    np.testing.assert_allclose(flatness_measures.smooth_gap(bent, x, shares), whole, rtol=1e-3)
    assert (flatness_measures.gap_at(bent, x, shares) > 1.2 * whole).all()


@pytest.mark.parametrize("sampler", flatness_measures.NOISES)
def test_noises_have_variance_1(sampler):
    x = flatness_measures.unit_noise(jax.random.key(2), LIKE, 40_000, sampler)
    np.testing.assert_allclose(x.std(0), np.ones(LIKE.shape), rtol=0.05)
    # Student-t's prompts share a delta: squares of one prompt's coordinates go together.
    pair = np.corrcoef(np.square(x[:, 0, 0]), np.square(x[:, 0, 1]))[0, 1]
    assert pair > 0.1 if sampler == "student_t" else abs(pair) < 0.03


def test_sharpness():
    loss, matrix = quadratic()
    found = flatness_measures.sharpness(loss, LIKE, jax.random.key(3), 72)
    assert found["laplacian"] == pytest.approx(float(jnp.trace(matrix)), abs=1e-2)
    assert found["loss"] == pytest.approx(0.7)
    assert found["slope"] == pytest.approx(24**0.5)


@pytest.mark.parametrize("at_once", [8, 7])
def test_exact_laplacian_in_chunks(at_once):
    loss, matrix = quadratic()
    second = jax.jit(lambda x: curvature.second_order(loss, LIKE, x))
    got = flatness_measures.laplacian_of(second, LIKE, at_once)
    assert got == pytest.approx(float(jnp.trace(matrix)), rel=1e-4)


class Threshold:
    """A decoder whose mask is its first prompt, and whose picture does not matter."""

    def decode(self, embeddings, prompts, size):
        return prompts[:, 0].reshape(len(prompts), *size)


def case(mean, truth):
    return flatness_measures.Case(
        jnp.zeros((1, 1, 1)), jnp.asarray(truth), jnp.zeros_like(truth, bool), jnp.asarray(mean)
    )


def test_perturbed_masks():
    """At level 0 the mask of the mean in every draw; with a large level half of it is wrong."""
    truth = np.arange(400).reshape(20, 20) % 2 == 0
    mean = np.where(truth, 2.0, -2.0).reshape(1, 400).astype(np.float32)
    mean = np.concatenate([mean, mean])
    one = case(mean, truth)
    assert one.rms == pytest.approx(2)
    got = flatness_measures.robustness(
        Threshold(), one, jax.random.key(4), jnp.array([0.0, 50.0]), 4
    )
    assert got.shape == (3, 2, 4)
    np.testing.assert_array_equal(got[:, 0], [[800, 0, 0, 800]] * 3)
    np.testing.assert_allclose(got[:, 1], 400, atol=80)
    # At 100 % a pixel flips if a normal value is below -1, and in the prompts' units below -2.
    few = flatness_measures.robustness(Threshold(), one, jax.random.key(5), jnp.array([1.0]), 40)
    flipped = few[:, 0, 1:3].sum(1) / few[:, 0].sum(1)
    np.testing.assert_allclose(flipped, scipy.stats.norm.cdf([-1, -1, -2]), atol=0.01)


def test_shared_noise_is_one_vector():
    """A decoder of the difference of two prompts does not see it, but sees noise of their own."""

    class Difference:
        def decode(self, embeddings, prompts, size):
            return (prompts[:, 0] - prompts[:, 1]).reshape(len(prompts), *size)

    truth = np.ones((4, 4), bool)
    mean = np.stack([np.ones(16), -np.ones(16)]).astype(np.float32)
    got = flatness_measures.robustness(
        Difference(), case(mean, truth), jax.random.key(6), jnp.array([3.0]), 8
    )
    own, shared, _ = got[:, 0]
    np.testing.assert_array_equal(shared, [128, 0, 0, 0])
    assert own[2] > 10


def test_loss_is_in_units_of_the_prompts():
    truth = np.ones((2, 2), bool)
    one = case(np.full((1, 4), 3.0, np.float32), truth)
    loss = flatness_measures.loss_of(Threshold(), one)
    p = jax.nn.sigmoid(6.0)
    expected = -jnp.log(p) + 1 - (8 * p + 1) / (4 * p + 5)
    assert loss(jnp.ones((1, 4))) == pytest.approx(float(expected), rel=1e-4)


# The command.


def test_json_has_a_line_for_each_list():
    held = {"a": {"b": [1.5, 2], "c": [[1, 2], [3, 4]]}, "d": "x"}
    text = flatness.compact(held)
    assert json.loads(text) == held
    assert "[ 1.5, 2 ]" in text


def test_no_runs(tmp_path):
    with pytest.raises(UserError) as error:
        flatness_runs.finished(tmp_path)
    told(error, str(tmp_path), "vrp", "prosam reproduce")


def test_seeds_that_all_methods_have(tmp_path):
    frozen = {}
    for seed, methods in ((1, list(flatness_runs.METHODS)), (2, ["vrp", "gaussian"])):
        base = replaced(finished_runs.BASE, {"seed": seed})
        for method in methods:
            run = finished_runs.finished(tmp_path / str(seed), method, 50, base)
            (run.workdir / "config.json").write_text(json.dumps(to_dict(run.cfg)))
            workdir = run.workdir.rename(tmp_path / f"{method}-seed{seed}")
            frozen[seed] = (workdir / "frozen.json").read_text()
    # Random networks follow the seed, and runs on other networks cannot share a decoder.
    with pytest.raises(UserError) as error:
        flatness_runs.finished(tmp_path)
    told(error, "gaussian-seed2", "other frozen weights")
    for method in ("vrp", "gaussian"):
        (tmp_path / f"{method}-seed2" / "frozen.json").write_text(frozen[1])
    shutil.copytree(tmp_path / "vrp-seed1", tmp_path / "vrp-k5-seed1")
    [fold] = flatness_runs.finished(tmp_path)
    assert fold.runs["vrp"][0].workdir == tmp_path / "vrp-seed1"
    assert (fold.number, fold.seeds) == (0, (1,))
    found = {name: [x.cfg.distribution.name for x in of] for name, of in fold.runs.items()}
    assert found == {name: [name] for name in flatness_runs.METHODS}


@pytest.mark.slow
def test_cases_are_the_models_own():
    """Of the packaged model: its mean prompts, its loss and its sigma, in the order of the list."""
    model, cfg = load("prosam-shapes", {})
    episodes = flatness_runs.encoded(model, cfg, 3)
    found = list(flatness_runs.cases(model, episodes, 2))
    source = evaluate.test_episodes(replaced(cfg, {"eval.episodes": 3}))
    batch = next(iter(make_loader(source, batch_size=3)))
    features = model.encode(jax.tree.map(jnp.asarray, batch))
    posterior = model.posterior(features)
    assert len(found) == 2 and len(episodes.truth) == 3
    for i, (one, sigma) in enumerate(found):
        np.testing.assert_array_equal(one.truth, batch.target_mask[i])
        np.testing.assert_allclose(one.mean, posterior.mean[i], atol=1e-4)
        expected = equations.scale(posterior.log_scale[i])
        np.testing.assert_allclose(sigma * one.rms, expected, rtol=1e-3)
        logits = model.decode(
            features.image_embeddings[i : i + 1], posterior.mean[i : i + 1], one.truth.shape
        )
        loss = flatness_measures.loss_of(model, one)(jnp.zeros_like(one.mean))
        assert loss == pytest.approx(
            float(equations.mask_loss(logits, jnp.asarray(batch.target_mask[i : i + 1]))), rel=1e-3
        )
        counts = flatness_measures.counts_at(model, one)
        mask = np.asarray(logits[0]) > 0
        assert abs(int(counts[0]) - int((mask & batch.target_mask[i]).sum())) <= 2


def test_tables_and_figures_of_the_stored_numbers(tmp_path):
    """From the page's own JSON: every table has rows, and each figure is written."""
    docs = pathlib.Path(__file__).parents[1] / "docs"
    held = json.loads((docs / "studies/flatness.json").read_text())
    flatness_figures.draw(held, tmp_path)
    assert {x.name for x in tmp_path.iterdir()} == {
        f"flatness_{name}.png" for name in ("proposition", "robustness", "curvature")
    }
    page = (docs / "flatness.md").read_text()
    for table in flatness_figures.tables(held).split("\n\n"):
        assert table in page
