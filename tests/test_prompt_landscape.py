"""Descent on prompts against plain loops and PyTorch, the study's measures, and the study."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import told
from PIL import Image
from sam_pairs import CFG, pair

from prosam_jax import equations
from prosam_jax.config.settings import packaged
from prosam_jax.errors import UserError
from prosam_jax.types import Posterior
from studies import descent, landscape_measures, prompt_landscape, tsne
from studies.descent import Rule
from torch_models import prosam as torch_prosam

CURVATURE = jnp.asarray([0.5, 2.0, 8.0])


def quadratic(x, key):
    del key
    return (CURVATURE * (x - 1) ** 2).sum()


def noisy(x, key):
    return ((x - 1 + 0.3 * jax.random.normal(key, x.shape)) ** 2).sum()


def plain(loss, start, key, rule):
    """`descend` from one start, step by step in Python."""
    optimiser = optax.adamw(rule.rate, weight_decay=rule.decay)
    step = jax.jit(jax.value_and_grad(loss))
    at, state, best, since, losses = start, optimiser.init(start), np.inf, 0, 0
    while True:
        value, gradient = step(at, jax.random.fold_in(key, losses))
        losses += 1
        if value < best - rule.tolerance:
            best, since = value, 0
        else:
            since += 1
        if since >= rule.patience or losses >= rule.most:
            return at, value, losses, since >= rule.patience
        updates, state = optimiser.update(gradient, state, at)
        at = optax.apply_updates(at, updates)


def test_the_stop_rule_step_by_step():
    rng = np.random.default_rng(0)
    ends = []
    for scale in (0.02, 0.2):
        losses = np.exp(-0.1 * np.arange(300)) + scale * rng.random(300)
        losses[7] = np.nan
        rule, progress, best, since = Rule(patience=12, tolerance=0.01), descent.begun(), np.inf, 0
        for i, loss in enumerate(losses.astype(np.float32)):
            progress = descent.advanced(progress, loss, rule)
            best, since = (loss, 0) if loss < best - np.float32(0.01) else (best, since + 1)
            assert (float(progress.best), int(progress.since)) == (float(best), since)
            assert bool(descent.is_over(progress, rule)) == (since >= 12)
            if since >= 12:
                ends.append(i)
                break
    assert len(ends) == 2 and ends[0] != ends[1]


def test_small_improvements_add_up():
    """A loss that falls by less than the tolerance at each step, but by more in all."""
    progress, rule = descent.begun(), Rule(patience=5, tolerance=0.1)
    for i in range(30):
        progress = descent.advanced(progress, jnp.asarray(1 - 0.03 * i), rule)
        assert not descent.is_over(progress, rule)


@pytest.mark.parametrize("loss", [quadratic, noisy])
def test_descents_are_those_of_a_plain_loop(loss):
    """Seven starts of very different lengths on three lanes; each ends where it would alone."""
    scales = jnp.asarray([0.1, 3.0, 0.5, 6.0, 0.0, 1.0, 2.0])
    starts = 1 + scales[:, None] * jax.random.normal(jax.random.key(1), (7, 3))
    keys, rule = jax.random.split(jax.random.key(2), 7), Rule(rate=0.05, patience=20, most=170)
    found = jax.jit(lambda x, k: descent.descend(loss, x, k, rule, lanes=3))(starts, keys)
    for i in range(7):
        at, value, losses, over = plain(loss, starts[i], keys[i], rule)
        assert int(found.losses[i]) == losses
        assert bool(found.over[i]) == over
        np.testing.assert_allclose(found.at[i], at, atol=1e-5)
        np.testing.assert_allclose(found.loss[i], value, atol=1e-5)
    assert len(set(found.losses.tolist())) > 3


def test_the_quadratics_minimum_is_found():
    starts = 4 * jax.random.normal(jax.random.key(3), (5, 3))
    keys = jax.random.split(jax.random.key(4), 5)
    found = descent.descend(quadratic, starts, keys, Rule(rate=0.1, decay=0.0))
    assert found.over.all()
    np.testing.assert_allclose(found.at, np.ones((5, 3)), atol=0.02)
    assert (found.losses < Rule().most).all()
    few = descent.descend(quadratic, starts, keys, Rule(rate=0.1, most=9), lanes=8)
    assert not few.over.any() and (few.losses == 9).all()


@pytest.fixture(scope="module")
def sides():
    """The same random SAM in torch and JAX, with a picture's embedding and a mask."""
    theirs, ours = pair(CFG, 5)
    h, w = CFG.embedding_size
    embedding = jax.random.normal(jax.random.key(6), (1, h, w, CFG.prompt_embed_dim))
    y, x = np.mgrid[:40, :56]
    mask = ((y - 18) ** 2 + (x - 30) ** 2 < 150)[None]
    return theirs, ours, descent.Pair(embedding, jnp.asarray(mask))


@pytest.mark.slow
def test_descent_on_sam_is_that_of_pytorchs_adamw(sides):
    theirs, ours, of = sides
    starts = 2 * jax.random.normal(jax.random.key(7), (3, 4, CFG.prompt_embed_dim))
    rule = Rule(rate=0.05, decay=0.1, most=12)
    keys = jax.random.split(jax.random.key(8), 3)
    found = jax.jit(
        lambda x: descent.descend(descent.loss_of_set(ours, of), x, keys, rule, lanes=2)
    )(starts)
    embedding = torch.from_numpy(np.array(of.embedding)).permute(0, 3, 1, 2)
    target = torch.from_numpy(np.array(of.mask)).float()
    for i, start in enumerate(np.array(starts)):
        at = torch.from_numpy(start.copy()).requires_grad_()
        optimiser = torch.optim.AdamW([at], lr=rule.rate, weight_decay=rule.decay)
        losses = []
        for step in range(rule.most):
            logits = torch_prosam.decode(theirs, embedding, at[None], target.shape[1:])
            loss = torch_prosam.mask_loss(logits, target)
            losses.append(loss.item())
            if step + 1 < rule.most:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        np.testing.assert_allclose(found.loss[i], losses[-1], rtol=1e-4)
        np.testing.assert_allclose(found.at[i], at.detach(), atol=2e-3)
        assert losses[0] - losses[-1] > 0.05


@pytest.mark.slow
def test_the_distributions_loss_is_the_mean_of_its_samples(sides):
    _, ours, of = sides
    mean = jax.random.normal(jax.random.key(9), (1, 4, CFG.prompt_embed_dim))
    posterior, key = Posterior(mean, jnp.full_like(mean, -1.0)), jax.random.key(10)
    loss = descent.loss_of_distribution(ours, of, 3, 5.0, 2)
    of_set = jax.jit(descent.loss_of_set(ours, of))
    samples = equations.sample_prompts(key, posterior, 3, sampler="student_t", nu=5.0)
    each = [float(of_set(x[0], key)) for x in samples]
    assert float(jax.jit(loss)(posterior, key)) == pytest.approx(np.mean(each), rel=1e-5)
    assert np.std(each) > 1e-3
    sure = posterior._replace(log_scale=jnp.full_like(mean, -30.0))
    assert float(jax.jit(loss)(sure, key)) == pytest.approx(float(of_set(mean[0], key)), rel=1e-5)


def test_what_beats_what():
    low, high = np.asarray([1.0, 2.0, 3.0]), np.asarray([2.0, 5.0])
    assert landscape_measures.beaten(high, low) == pytest.approx((1 + 0.5 + 3) / 6)
    assert landscape_measures.beaten(low, low) == 0.5
    assert landscape_measures.beyond_quartile(high, low) == 0.5


def test_centrality():
    """A further point like the others has about 1, their mean 0; the sets' own mean is left out."""
    rng = np.random.default_rng(0)
    sets = 25 * rng.standard_normal((40, 500))
    assert landscape_measures.centrality(sets, sets.mean(0)) == pytest.approx(0, abs=1e-9)
    others = [landscape_measures.centrality(sets, x) for x in 25 * rng.standard_normal((20, 500))]
    assert np.mean(others) == pytest.approx(1, abs=0.02)
    far = [landscape_measures.centrality(sets, x) for x in 50 * rng.standard_normal((20, 500))]
    assert np.mean(far) == pytest.approx(2, abs=0.1)


def test_numbers_across_pairs():
    found = landscape_measures.across([{"x": float(i)} for i in range(20)])["x"]
    assert found["mean"] == found["median"] == 9.5 and found["greatest"] == 19
    # The mean of 20 draws has the standard error 1.29.
    assert found["low"] == pytest.approx(9.5 - 1.96 * 1.29, abs=0.3)
    assert found["high"] == pytest.approx(9.5 + 1.96 * 1.29, abs=0.3)
    assert landscape_measures.across([{"x": 2.0}]) == {"x": {"mean": 2.0}}


def clusters(n=30, apart=20.0):
    rng = np.random.default_rng(1)
    centres = apart * rng.standard_normal((3, 8))
    return np.concatenate([c + rng.standard_normal((n, 8)) for c in centres]), np.arange(3 * n) // n


def test_affinities_have_the_perplexity():
    x, _ = clusters()
    distances = tsne.squared_distances(jnp.asarray(x, jnp.float32))
    expected = np.square(x[:, None] - x[None]).sum(2)
    np.testing.assert_allclose(distances, expected, rtol=1e-3, atol=2e-2)
    rows = np.asarray(tsne.conditional(distances, 12.0))
    np.testing.assert_allclose(np.diag(rows), 0)
    entropy = -(rows * np.log(np.maximum(rows, 1e-30))).sum(1)
    np.testing.assert_allclose(np.exp(entropy), 12, rtol=1e-3)
    p = tsne.affinities(distances, 12.0)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(p, p.T)


@pytest.mark.slow
def test_tsne_keeps_clusters_apart():
    x, which = clusters(apart=3.0)
    y = tsne.project(x, 10.0)
    distances = np.linalg.norm(y[:, None] - y[None], axis=2) + 1e9 * np.eye(len(y))
    assert (which[distances.argmin(1)] == which).mean() > 0.98
    p = tsne.affinities(tsne.squared_distances(jnp.asarray(x, jnp.float32)), 10.0)
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    pca = jnp.asarray(u[:, :2] * s[:2], jnp.float32)
    assert tsne.divergence(jnp.asarray(y), p) < 0.6 * tsne.divergence(pca, p)
    with pytest.raises(UserError) as error:
        tsne.project(x[:20], 10.0)
    told(error, "20 points", "6.66667")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prompt_landscape", *map(str, arguments)])
    prompt_landscape.main()


@pytest.mark.exhaustive
def test_the_study_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    words = ["--sets=3", "--first=4", "--first-starts=2", "--prompts=2", "--most=4", "--size=64"]
    words += ["--work", tmp_path / "work", "--out", tmp_path / "docs"]
    run(monkeypatch, *words, "--pairs=1")
    assert not (tmp_path / "docs" / "images" / "landscape_pairs.png").exists()
    run(monkeypatch, *words, "--pairs=2")
    assert capsys.readouterr().out.count("fold 0, test 0:") == 1  # the second run has it
    held = json.loads((tmp_path / "docs" / "studies" / "landscape.json").read_text())
    assert held["pairs"] == 2 and list(held["each pair"]) == ["fold 0, test 0", "fold 1, test 0"]
    means = held["over pairs"]
    for name, x in means.items():
        assert x["least"] <= x["mean"] <= x["greatest"] or x["least"] == x["greatest"], name
    assert means["25: losses of a set"]["mean"] == 4
    assert means["1: stopped by the rule"]["mean"] == 0
    assert 0.8 < means["25: centrality"]["mean"] < 1.3  # nothing has moved yet
    for name in ("landscape", "landscape_pairs"):
        with Image.open(tmp_path / "docs" / "images" / f"{name}.png") as image:
            assert image.width > 800


@pytest.mark.slow
def test_a_picture_of_ones_own(tmp_path, monkeypatch, capsys):
    pixels = np.full((50, 70, 3), 90, np.uint8)
    pixels[10:30, 20:50] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray((pixels[..., 0] > 100).astype(np.uint8) * 255).save(tmp_path / "m.png")
    words = ["--sets=3", "--prompts=2", "--most=3", "--size=64"]
    words += ["--work", tmp_path, "--image", tmp_path / "a.png", "--mask", tmp_path / "m.png"]
    words += ["--sam", packaged("sam", "shapes")]
    run(monkeypatch, *words)
    held = json.loads((tmp_path / "studies" / "landscape.json").read_text())
    assert list(held["each pair"]) == ["a.png"]
    assert held["settings"]["sam"] == "shapes"
    assert set(held["over pairs"]["1: IoU of the sets"]) == {"mean"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image=a.png"], ["--image and --mask"]),
        (["--sets=1"], ["--sets=1", "at least 2"]),
        (["--sam=missing.safetensors"], ["missing.safetensors", "prosam weights convert sam"]),
        ([f"--sam={packaged('backbone', 'shapes')}"], ["not a SAM", "prosam weights convert sam"]),
    ],
)
def test_wrong_arguments_are_told(arguments, words, monkeypatch):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *arguments)
    for word in words:
        assert word in str(error.value.code)
