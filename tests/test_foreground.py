"""One rule for masks wherever they are made: a logit of exactly 0 is background."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from sam_pairs import CFG, convert
from segment_anything import SamPredictor as TorchPredictor
from small import SETTINGS

from prosam_jax import SamPredictor, Segmenter, calibration, equations, model
from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.loader import make_loader
from prosam_jax.evaluation import controls, prediction, strategies
from prosam_jax.evaluation.prediction import RESULT
from prosam_jax.types import Posterior
from torch_models import sam as torch_sam

SIDE = 64
ROW = np.float32([-1, -0.0, 0.0, 1])
LOGITS = np.tile(ROW, (SIDE, SIDE // 4))
ABOVE = LOGITS == 1


class Given(model.ProSAM):
    """A model of the masks above, whatever it is shown."""

    def decode_low_res(self, image_embeddings, prompts, shots=1):
        b = len(image_embeddings)
        return jnp.broadcast_to(jnp.asarray(LOGITS), (b, *LOGITS.shape)), jnp.ones(b)


@pytest.fixture(scope="module")
def cfg():
    groups = {name: SETTINGS[name] for name in ("sam", "backbone", "prompt", "distribution")}
    return Config.from_dict({**groups, "data": {"name": "shapes", "image_size": SIDE}})


@pytest.fixture(scope="module")
def given(cfg):
    built = model.build(cfg)
    return Given(cfg, built.sam, built.backbone, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def episode(cfg):
    """Two test episodes, each with a right reference and a wrong one."""
    source = datasets.episodes(cfg.data, "test", seed=3, length=2)
    return next(make_loader(dataclasses.replace(source, wrong=True), batch_size=2))


def test_foreground_lies_above_zero():
    logits = np.float32([-np.inf, -1, -1e-30, -0.0, 0.0, 1e-30, 1, np.inf, np.nan])
    host, device = (equations.foreground(x) for x in (logits, jnp.asarray(logits)))
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array)
    for found in (host, device, jax.jit(equations.foreground)(logits)):
        np.testing.assert_array_equal(found, [False] * 5 + [True] * 3 + [False])


def test_foreground_is_vrp_sams():
    """sigmoid > 0.5, as in its train.py, for logits that float32's sigmoid tells from 0."""
    logits = np.float32([-30, -1, -1e-6, -0.0, 0.0, 1e-6, 1, 30])
    expected = torch.sigmoid(torch.from_numpy(logits)) > 0.5
    np.testing.assert_array_equal(equations.foreground(logits), expected.numpy())


def test_zeros_are_background_in_scores(given, episode):
    graph, params, frozen = model.split(given)
    plain = episode._replace(
        reference_image=episode.reference_image[:, :1], reference_mask=episode.reference_mask[:, :1]
    )
    found = prediction.make_predict_step(graph)(params, frozen, plain)
    np.testing.assert_array_equal(found.masks[RESULT], [ABOVE, ABOVE])
    hits = (ABOVE & episode.target_mask).sum((1, 2))
    missed = episode.target_mask.sum((1, 2)) - hits
    np.testing.assert_array_equal(found.counts[RESULT][:, 0], hits)
    np.testing.assert_array_equal(found.counts[RESULT][:, 1], ABOVE.sum() - hits)
    np.testing.assert_array_equal(found.counts[RESULT][:, 2], missed)


def test_zeros_are_background_in_controls(cfg, given, episode):
    graph, params, frozen = model.split(given)
    found = controls.make_step(graph, params, samples=3)(params, frozen, episode)
    masks = dict(found.masks)
    expected = {RESULT, *controls.MEANING, *strategies.NAMES} - {controls.PRIOR}
    assert masks.keys() == expected
    del masks[controls.EVERYTHING]
    for name in masks:
        np.testing.assert_array_equal(masks[name], [ABOVE, ABOVE], err_msg=name)


def test_zeros_are_background_in_trainings_log(given):
    target = jnp.ones((2, SIDE, SIDE), jnp.bool_)
    posterior = Posterior(jnp.zeros((2, 3, 256)), jnp.zeros((2, 3, 256)))
    _, aux = given.expected_loss(jnp.zeros((2, 4, 4, 256)), posterior, target, jax.random.key(0))
    np.testing.assert_array_equal(aux["intersection"], ABOVE.sum())


def test_zeros_are_background_to_users(given):
    seg = Segmenter(given, SIDE)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for label in ("cat", "dog"):
        seg.add_reference(image, mask=np.ones((SIDE, SIDE), np.bool_), label=label)
    found = seg.segment(image)
    np.testing.assert_array_equal(found.masks, [ABOVE, ABOVE])
    np.testing.assert_array_equal(found.label_map, ABOVE)  # the first of two that are level
    p = 1 / (1 + np.exp(-ROW))  # of a logit of 0 it is 1/2, but the pixel is outside
    expected = p[3] / (1 + p[:3].sum())
    np.testing.assert_allclose(found.expected_iou, expected, rtol=1e-6)
    nothing = calibration.expected_iou(jnp.asarray([[[0.0, -0.0]]]))
    np.testing.assert_array_equal(nothing, [0])


def test_zeros_are_background_as_in_segment_anything():
    """A decoder whose masks are 0 everywhere, in both."""
    cfg = dataclasses.replace(CFG, image_size=(144, 144))
    oracle = torch_sam.build(cfg, 3)
    with torch.no_grad():
        for mlp in oracle.mask_decoder.output_hypernetworks_mlps:
            for x in mlp.layers[-1].parameters():
                x.zero_()
    ours = convert(oracle, cfg)
    image = np.random.default_rng(0).integers(0, 256, (90, 144, 3), dtype=np.uint8)
    click = {"point_coords": np.array([[70.0, 40.0]]), "point_labels": np.array([1])}
    results = []
    for predictor in (TorchPredictor(oracle), SamPredictor(ours)):
        predictor.set_image(image)
        logits, *_ = predictor.predict(**click, return_logits=True)
        np.testing.assert_array_equal(logits, 0)
        results.append(predictor.predict(**click)[0])
    points, labels = (jnp.asarray(x)[None] for x in click.values())
    whole = ours(
        jnp.asarray(image)[None], points=points.astype(jnp.float32), labels=labels.astype(jnp.int32)
    )
    for masks in (*results, whole.masks):
        assert masks.dtype == np.bool_ and not masks.any()
