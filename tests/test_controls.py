import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prosam_jax import model
from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.loader import make_loader
from prosam_jax.evaluation import controls, prediction, results
from prosam_jax.evaluation.metrics import Scores

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
    run = controls.make_step(graph, fresh, samples=2)
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
    assert found.control_masks.keys() == NAMES
    plain = prediction.make_predict_step(graph)(params, frozen, _plain(episode))
    np.testing.assert_array_equal(found.mask, plain.mask)
    jax.tree.map(np.testing.assert_array_equal, found.areas, plain.areas)
    assert found.empty_annotations.shape == plain.empty_annotations.shape == (2, 2)

    def differing(changed_params, changed_episode):
        other = run(changed_params, frozen, changed_episode)
        masks = {**other.control_masks, "result": other.mask, "uncertainty": other.uncertainty}
        before = {**found.control_masks, "result": found.mask, "uncertainty": found.uncertainty}
        return {name for name, mask in masks.items() if np.any(mask != before[name])}

    # The order of references is right, right, wrong, wrong.
    wrong_first = jax.tree.map(lambda x: x[:, [2, 3, 0, 1]], episode[:2])
    swapped = episode._replace(reference_image=wrong_first[0], reference_mask=wrong_first[1])
    moved = differing(params, swapped)
    assert moved >= {"result", "uncertainty", controls.UNTRAINED, controls.WRONG}
    assert not moved & {controls.EMPTY, controls.EVERYTHING}
    np.testing.assert_array_equal(
        run(params, frozen, swapped).mask, found.control_masks[controls.WRONG]
    )
    np.testing.assert_array_equal(
        run(fresh, frozen, episode).mask, found.control_masks[controls.UNTRAINED]
    )
    assert differing(fresh, episode) == {"result", "uncertainty", controls.WRONG}
    assert 0 <= found.uncertainty.min() < found.uncertainty.max() <= 1


@pytest.mark.slow
def test_where_there_is_no_wrong_class_the_other_controls_stay(compiled):
    graph, params, frozen, fresh, episode, run = compiled
    without = controls.make_step(graph, fresh, samples=2, wrong=False)
    found, whole = without(params, frozen, _plain(episode)), run(params, frozen, episode)
    assert found.control_masks.keys() == NAMES - {controls.WRONG}
    np.testing.assert_array_equal(found.mask, whole.mask)
    for name, mask in found.control_masks.items():
        np.testing.assert_array_equal(mask, whole.control_masks[name])


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
        return controls.prior(built, features, (64, 64)), mask

    likeness = np.asarray(clicked(jnp.zeros((2, 1, 2)))[0])
    for i, threshold in ((0, 0.02), (30, 0.62), (48, 0.98)):
        assert controls.THRESHOLDS[i] == threshold
        areas = found.controls[f"cosine prior above {threshold:.2f}"]
        inside = ((likeness > np.float32(threshold)) & episode.target_mask).sum((1, 2))
        np.testing.assert_allclose(areas.intersection[:, 1], inside, atol=2)
    np.testing.assert_array_equal(
        found.controls[controls.EVERYTHING].intersection[:, 1], episode.target_mask.sum((1, 2))
    )
    peaks = [np.unravel_index(one.argmax(), (64, 64)) for one in likeness]
    points = np.array([[[x, y]] for y, x in peaks], np.float32)  # SAM's square has their size
    mask = clicked(jnp.asarray(points))[1]
    np.testing.assert_array_equal(mask, found.control_masks[controls.CLICK])


def test_the_prior_is_cut_where_its_score_is_best():
    def scores(miou):
        return Scores(miou=miou, fb_iou=miou / 2, per_class={1: miou})

    swept = {f"cosine prior above {t:.2f}": scores(1 - abs(t - 0.44)) for t in controls.THRESHOLDS}
    given = {name: scores(0.1) for name in NAMES}
    result = results.Result(scores(0.5), {}, 1, "", 0.0, [], 1, 0, swept | given)
    chosen = controls.chosen(result)
    assert chosen.prior_threshold == 0.44
    assert chosen.controls[controls.PRIOR].miou == pytest.approx(1)
    assert list(chosen.controls) == list(controls.MEANING)
    assert chosen.scores == result.scores
