"""How predictions are made, counted and kept: strategies, shots, resolutions, lists."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import told
from flax import nnx
from PIL import Image
from small import small_config

from prosam_jax import inference, model, resize, runs, sharding
from prosam_jax.config import replaced
from prosam_jax.data.loader import make_loader
from prosam_jax.data.transforms import resize_mask
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate, intervals, metrics, prediction, results, strategies
from prosam_jax.evaluation.prediction import RESULT

pytestmark = pytest.mark.slow


def test_strategies_merge_logits_or_votes():
    """Each of four masks is one pixel wide; logits are shown in twice the decoder's size."""
    low = np.float32([[3, -1, -1, 1], [-2, 2, -1, 1], [-2, 2, -1, -1], [-2, -4, -1, -1]])
    low = low[:, None, None, :]

    def doubled(x):
        return jnp.repeat(x, 2, axis=-1)

    found = {name: x[0, 0, ::2].tolist() for name, x in strategies.merged(low, doubled).items()}
    assert found == {
        strategies.MAX_LOGITS: [True, True, False, True],
        strategies.MEAN_LOGITS: [False, False, False, False],  # sums -3, -1, -4 and 0
        strategies.MAX_BINARY: [True, True, False, True],
        strategies.MEAN_BINARY: [False, True, False, True],  # two of four
        strategies.VOTE: [False, False, False, False],
    }
    three = strategies.merged(low[:3], doubled)
    np.testing.assert_array_equal(three[strategies.MEAN_BINARY], three[strategies.VOTE])
    assert three[strategies.VOTE][0, 0, ::2].tolist() == [False, True, False, True]


def test_logits_are_merged_before_they_are_resized():
    """Else the maximum of logit masks would be the maximum of binary masks."""
    low = jnp.float32([[[[4, -4]]], [[[-9, -1]]], [[[-4, 3]]]])

    def wide(x):
        return resize.bilinear_map(x, (1, 9))

    found = strategies.merged(low, wide)
    expected = wide(low.max(0)) > 0
    np.testing.assert_array_equal(found[strategies.MAX_LOGITS], expected)
    assert (found[strategies.MAX_LOGITS] != found[strategies.MAX_BINARY]).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small model, disturbed so that masks differ, and its settings with two shots."""
    root = tmp_path_factory.mktemp("voc")
    cfg = small_config(
        root,
        data={"shots": 2},
        distribution={"init_scale": 0.5},
        eval={"episodes": 5, "pictures": 0},
    )
    for mask in sorted(root.glob("SegmentationClassAug/*.png"))[::2]:  # of another size
        image = root / "JPEGImages" / f"{mask.stem}.jpg"
        for path, room in ((mask, (20, 7)), (image, (20, 7, 0))):
            with Image.open(path) as opened:
                pixels = np.pad(np.array(opened), [(0, n) for n in room])
            Image.fromarray(pixels).save(path)
    graph, params, frozen = model.split(model.build(cfg))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    return cfg, graph, params, frozen


def _batch(cfg):
    return next(make_loader(evaluate.test_episodes(cfg), batch_size=5))


def test_strategies_are_of_sampled_prompts_decoded_one_by_one(run):
    cfg, graph, params, frozen = run
    batch = _batch(cfg)
    found = prediction.make_predict_step(graph, samples=3)(params, frozen, batch)
    assert set(found.masks) == {RESULT, *strategies.NAMES}
    built = nnx.merge(graph, params, frozen)
    features = built.encode(jax.tree.map(jnp.asarray, batch))
    posterior = built.posterior(features)
    key = model.stream(0, "strategies")
    prompts = inference.sampled_prompts(built, posterior, 3, key)
    assert float(jnp.abs(prompts[0] - prompts[1]).max()) > 0.1
    masks = [built.decode(features.image_embeddings, p, (64, 64)) > 0 for p in prompts]
    votes = np.sum(masks, axis=0)
    for name, least in ((strategies.MAX_BINARY, 1), (strategies.VOTE, 2)):
        assert (found.masks[name] == (votes >= least)).mean() > 0.999  # of logits near 0
    plain = prediction.make_predict_step(graph)(params, frozen, batch)
    np.testing.assert_array_equal(plain.masks[RESULT], found.masks[RESULT])


def test_strategies_do_not_depend_on_the_batch(run):
    cfg, graph, params, frozen = run
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    params, frozen = sharding.replicate((params, frozen), mesh)
    predict, source = prediction.make_predict_step(graph, samples=3), evaluate.test_episodes(cfg)
    one, *others = (
        evaluate.evaluate(predict, params, frozen, source, batch_size=b, mesh=mesh).lists[0].counts
        for b in (1, 2, 5)
    )
    assert set(one) == {RESULT, *strategies.NAMES}
    for other in others:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_shots_are_joined_as_prompts_or_as_logits(run):
    """In PyTorch's words: one call with all tokens, or the mean of one call for each reference."""
    cfg, graph, params, frozen = run
    batch = jax.tree.map(jnp.asarray, _batch(cfg))
    built = nnx.merge(graph, params, frozen)
    apart = model.ProSAM(
        replaced(cfg, {"eval.join": "logits"}),
        built.sam,
        built.backbone,
        rngs=nnx.Rngs(0),
        prompt_encoder=built.prompt_encoder,
    )
    together, mean = (
        jax.jit(model.ProSAM.predict)(built, batch),
        jax.jit(model.ProSAM.predict)(apart, batch),
    )
    alone = []
    for shot in range(2):
        one = batch._replace(
            reference_image=batch.reference_image[:, shot : shot + 1],
            reference_mask=batch.reference_mask[:, shot : shot + 1],
        )
        alone.append(built.predict(one))
    np.testing.assert_allclose(mean, np.mean(alone, axis=0), atol=2e-5)
    features = built.encode(batch)
    prompts = built.posterior(features).mean
    assert prompts.shape[1] == 2 * cfg.prompt.num_queries
    expected = built.decode(features.image_embeddings, prompts, (64, 64))
    np.testing.assert_allclose(together, expected, atol=2e-5)
    assert float(jnp.abs(together - mean).max()) > 1e-3


def _evaluated(run, **changes):
    cfg, graph, params, frozen = run
    cfg = replaced(cfg, {f"eval.{name}": value for name, value in changes.items()})
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    params, frozen = sharding.replicate((params, frozen), mesh)
    predict = prediction.make_predict_step(graph, original=cfg.eval.resolution == "original")
    source = evaluate.test_episodes(cfg)
    return source, evaluate.evaluate(
        predict, params, frozen, source, batch_size=2, mesh=mesh, examples=3
    )


def test_original_pixels_are_counted_as_by_hand(run):
    """torch resizes the decoder's logits to each picture's own size."""
    cfg, graph, params, frozen = run
    source, found = _evaluated(run, resolution="original")
    assert source.canvas is not None
    sizes = {tuple(source[i].target_size.tolist()) for i in range(5)}
    assert len(sizes) > 1 and source.canvas == tuple(np.max(list(sizes), axis=0))
    built = nnx.merge(graph, params, frozen)
    features = built.encode(jax.tree.map(jnp.asarray, _batch(cfg)))
    low, _ = built.decode_low_res(features.image_embeddings, built.posterior(features).mean)
    for i in range(5):
        spec = source.spec(i)
        labels = source.images.labels(spec.target_id)
        shown = torch.nn.functional.interpolate(
            torch.from_numpy(np.array(low[i]))[None, None],
            labels.shape,
            mode="bilinear",
            align_corners=True,
        )[0, 0].numpy()
        one = metrics.confusion(
            *(jnp.asarray(x)[None] for x in (shown > 0, labels == spec.class_id, labels == 255))
        )[0]
        counts = found.lists[0].counts[RESULT][i]
        assert counts.sum() == (labels != 255).sum()
        np.testing.assert_allclose(counts, one, atol=3)  # logits within 1e-5 of 0
        if i < len(found.examples):  # which show the square
            example, truth = found.examples[i], _batch(cfg).target_mask[i]
            assert (example.prediction == resize_mask(shown > 0, 64)).mean() > 0.999
            np.testing.assert_array_equal(example.episode.target_mask, truth)
    assert len(found.examples) == 3


def test_what_a_scored_run_writes(run, tmp_path, capsys):
    cfg, graph, params, frozen = run
    cfg = replaced(cfg, {"eval.samples": 2, "eval.seeds": 3, "eval.controls": True})
    parts = model.Parts(graph, params, frozen)
    sources = runs._sources(cfg)
    assert [x.seed for x in sources] == [321, 322, 323]
    result = runs._score(cfg, tmp_path, sources, parts, 7, "x")
    held = json.loads((tmp_path / "results.json").read_text())
    assert held["episodes"] == 15 and len(held["lists"]) == 3
    assert held["miou"] == pytest.approx(np.mean([x["miou"] for x in held["lists"]]))
    assert held["episode_list_sha256"] == held["lists"][0]["episode_list_sha256"]
    assert len({x["episode_list_sha256"] for x in held["lists"]}) == 3
    low, high = held["miou_interval"]
    assert low <= held["miou"] <= high
    assert list(held["strategies"]) == list(strategies.NAMES)
    assert sum(held["shares_of_pixels"].values()) == pytest.approx(100)
    assert held["rates"]["tpr"] + held["rates"]["fnr"] == pytest.approx(100)
    wrong = held["controls"]["reference of a wrong class"]
    assert wrong["difference"] == pytest.approx(held["miou"] - wrong["miou"])
    assert wrong["difference_interval"][0] <= wrong["difference"] <= wrong["difference_interval"][1]
    assert f"{low:.2f} to {high:.2f}" in capsys.readouterr().out

    digests = [x["episode_list_sha256"] for x in held["lists"]]
    read = results.read_episodes(tmp_path / "episodes.csv", digests, held["classes"])
    for kept, again in zip(result.lists, read, strict=True):
        assert (kept.seed, kept.digest) == (again.seed, again.digest)
        assert (kept.target, kept.classes) == (again.target, again.classes)
        assert kept.counts.keys() == again.counts.keys()
        for name in kept.counts:
            np.testing.assert_array_equal(kept.counts[name], again.counts[name])
    drawn = results.draws(read, RESULT, False)
    assert [100 * x for x in intervals.interval(drawn.miou)] == held["miou_interval"]

    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(results.EPISODE_COLUMNS)
    assert len(rows) == 1 + 15 * len(result.lists[0].counts)
    for damaged, said in (
        (rows[:-1], "missing"),
        ([["a"], *rows[1:]], "first line"),
        ([rows[0], [*rows[1][:-1], "x"], *rows[2:]], "invalid literal"),
        (rows[:1], "0 lists"),
    ):
        with (tmp_path / "cut.csv").open("w", newline="") as file:
            csv.writer(file).writerows(damaged)
        with pytest.raises(UserError) as error:
            results.read_episodes(tmp_path / "cut.csv", digests, held["classes"])
        told(error, "cut.csv is damaged", said)


def test_a_class_without_an_episode_counts_as_asked(run):
    _, found = _evaluated(run)
    one = found.lists[0]
    present = set(one.class_id.tolist())
    assert present < set(one.classes)
    zero = dataclasses.replace(found, absent=True)
    assert zero.scores.miou == pytest.approx(found.scores.miou * len(present) / len(one.classes))


def test_nothing_can_be_sampled_of_a_deterministic_prompt_encoder(run):
    plain = {"name": "vrp", "samples": 10, "init_scale": 1.0}
    cfg = replaced(run[0], {f"distribution.{name}": value for name, value in plain.items()})
    with pytest.raises(UserError) as error:
        runs._sources(replaced(cfg, {"eval.samples": 5}))
    told(error, "eval.samples=5", "vrp")
