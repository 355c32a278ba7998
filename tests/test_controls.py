import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prosam_jax import calibration, model, resize
from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.loader import make_loader
from prosam_jax.evaluation import controls, prediction, results
from prosam_jax.evaluation.prediction import RESULT

SETTINGS = {
    "data": {"name": "shapes", "image_size": 64, "shots": 2},
    "sam": {"model": "shapes", "weights": "random", "image_size": 64},
    "backbone": {"name": "tiny", "weights": "random"},
    "prompt": {"dim": 96, "num_queries": 3},
}
NAMES = {controls.EMPTY, controls.UNTRAINED, controls.WRONG, controls.CLICK, controls.EVERYTHING}


@pytest.fixture(scope="module")
def compiled():
    """Episodes of two shots with two wrong references each, and the step over a tiny model.

    The trained parameters are the untrained ones, disturbed.
    """
    cfg = Config.from_dict(SETTINGS)
    graph, params, frozen = model.split(model.build(cfg))
    fresh = controls.untrained(cfg, 3 * 8 * 8)
    jax.tree.map(np.testing.assert_array_equal, fresh, params)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    source = datasets.episodes(cfg.data, "test", seed=3, length=2)
    source = dataclasses.replace(source, wrong=True)
    episode = next(make_loader(source, batch_size=2))
    run = controls.make_step(graph, fresh)
    return graph, params, frozen, fresh, episode, run


def _plain(episode):
    """The episode without its wrong references."""
    return episode._replace(
        reference_image=episode.reference_image[:, :2], reference_mask=episode.reference_mask[:, :2]
    )


@pytest.mark.slow
def test_each_control_takes_one_thing_away(compiled):
    graph, params, frozen, fresh, episode, run = compiled
    found = run(params, frozen, episode)
    assert found.masks.keys() == {RESULT, *NAMES}
    plain = prediction.make_predict_step(graph)(params, frozen, _plain(episode))
    np.testing.assert_array_equal(found.masks[RESULT], plain.masks[RESULT])
    np.testing.assert_array_equal(found.counts[RESULT], plain.counts[RESULT])
    assert found.empty_annotations.shape == plain.empty_annotations.shape == (2, 2)

    def differing(changed_params, changed_episode):
        other = run(changed_params, frozen, changed_episode)
        masks = {**other.masks, "uncertainty": other.uncertainty}
        before = {**found.masks, "uncertainty": found.uncertainty}
        return {name for name, mask in masks.items() if np.any(mask != before[name])}

    # The order of references is right, right, wrong, wrong.
    wrong_first = jax.tree.map(lambda x: x[:, [2, 3, 0, 1]], episode[:2])
    swapped = episode._replace(reference_image=wrong_first[0], reference_mask=wrong_first[1])
    moved = differing(params, swapped)
    assert moved >= {"result", "uncertainty", controls.UNTRAINED, controls.WRONG}
    assert not moved & {controls.EMPTY, controls.EVERYTHING}
    np.testing.assert_array_equal(
        run(params, frozen, swapped).masks[RESULT], found.masks[controls.WRONG]
    )
    np.testing.assert_array_equal(
        run(fresh, frozen, episode).masks[RESULT], found.masks[controls.UNTRAINED]
    )
    assert differing(fresh, episode) == {"result", "uncertainty", controls.WRONG}

    @jax.jit
    def logits(episode):
        built = nnx.merge(graph, params, frozen)
        return built.segment(built.encode(episode), episode.target_image.shape[1:3])

    bits = calibration.entropy(np.asarray(logits(_plain(episode))))
    np.testing.assert_allclose(found.uncertainty, bits, atol=1e-4)


@pytest.mark.slow
def test_where_there_is_no_wrong_class_the_other_controls_stay(compiled):
    graph, params, frozen, fresh, episode, run = compiled
    without = controls.make_step(graph, fresh, wrong=False)
    found, whole = without(params, frozen, _plain(episode)), run(params, frozen, episode)
    assert found.masks.keys() == {RESULT, *NAMES} - {controls.WRONG}
    for name, mask in found.masks.items():
        np.testing.assert_array_equal(mask, whole.masks[name])


@pytest.mark.slow
def test_the_baselines_use_the_prior_alone(compiled):
    graph, params, frozen, _, episode, run = compiled
    found = run(params, frozen, episode)

    @jax.jit
    def clicked(points):
        built = nnx.merge(graph, params, frozen)
        features = built.encode(jax.tree.map(jnp.asarray, _plain(episode)))
        tokens, _ = built.sam.prompt_encoder(points=points, labels=jnp.ones((2, 1), jnp.int32))
        mask = built.decode(features.image_embeddings, tokens, (64, 64)) > 0
        return resize.bilinear_map(controls.prior(built, features), (64, 64)), mask

    likeness = np.asarray(clicked(jnp.zeros((2, 1, 2)))[0])
    for i, threshold in ((0, 0.02), (30, 0.62), (48, 0.98)):
        assert controls.THRESHOLDS[i] == threshold
        counts = found.counts[f"cosine prior above {threshold:.2f}"]
        inside = ((likeness > np.float32(threshold)) & episode.target_mask).sum((1, 2))
        np.testing.assert_allclose(counts[:, 0], inside, atol=2)
    np.testing.assert_array_equal(
        found.counts[controls.EVERYTHING][:, 0], episode.target_mask.sum((1, 2))
    )
    peaks = [np.unravel_index(one.argmax(), (64, 64)) for one in likeness]
    points = np.array([[[x, y]] for y, x in peaks], np.float32)  # SAM's square has their size
    mask = clicked(jnp.asarray(points))[1]
    np.testing.assert_array_equal(mask, found.masks[controls.CLICK])


def test_the_prior_is_cut_where_its_score_is_best():
    def counts(iou):
        return np.array([[round(100 * iou), 0, 100 - round(100 * iou), 50]])

    swept = {f"cosine prior above {t:.2f}": counts(1 - abs(t - 0.44)) for t in controls.THRESHOLDS}
    given = {name: counts(0.1) for name in NAMES}
    one = results.Counted(
        3, "ab", {1: "x"}, np.array([1]), ["a"], {RESULT: counts(0.5), **swept, **given}
    )
    result = results.Result([one], False, 0.0, [], 1, 0)
    chosen = controls.chosen(result)
    assert chosen.prior_threshold == 0.44
    assert chosen.scores_of(controls.PRIOR).miou == pytest.approx(1)
    assert chosen.others == list(controls.MEANING)
    assert chosen.scores == result.scores
