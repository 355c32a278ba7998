import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import told
from flax import nnx
from sam_pairs import CFG, pair

from prosam_jax.errors import UserError
from prosam_jax.sam import Sam
from prosam_jax.weights import files

SQUARE = dataclasses.replace(CFG, image_size=(144, 144), depth=2)  # as stock SAM


def inputs(seed, size, names):
    rng = np.random.default_rng(seed)
    height, width = size
    values = {
        "images": rng.integers(0, 256, (2, *size, 3)).astype(np.uint8),
        "points": rng.uniform(0, (width, height), (2, 3, 2)).astype(np.float32),
        "labels": rng.integers(0, 2, (2, 3)).astype(np.int32),
        "boxes": rng.uniform(0, height, (2, 4)).astype(np.float32),
        "masks": rng.standard_normal((2, 36, 36, 1)).astype(np.float32),
    }
    return {name: jnp.asarray(values[name]) for name in ("images", *names)}


def torch_forward(oracle, given, original_size, multimask):
    """Stock SAM with one prompt per image."""
    given = {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
    names = {"points": "point_coords", "labels": "point_labels", "boxes": "boxes"}
    records = []
    for i, image in enumerate(given["images"]):
        record = {names[k]: v[i : i + 1] for k, v in given.items() if k in names}
        if "masks" in given:
            record["mask_inputs"] = given["masks"][i : i + 1].permute(0, 3, 1, 2)
        record["image"] = image.permute(2, 0, 1).float()
        records.append({**record, "original_size": original_size})
    outputs = oracle(records, multimask)
    names = ("masks", "iou_predictions", "low_res_logits")
    return tuple(torch.cat([output[name] for output in outputs]) for name in names)


@functools.partial(jax.jit, static_argnames=("multimask_output", "original_size"))
def forward(sam, given, **settings):
    return sam(**given, **settings)


FORWARDS = {
    "points_landscape": (0, ("points", "labels"), (96, 144), (130, 195), False),
    "points_landscape_other_seed": (1, ("points", "labels"), (96, 144), (130, 195), False),
    "everything_portrait": (0, ("points", "labels", "boxes", "masks"), (144, 100), (72, 50), True),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forward_is_torchs(name):
    seed, prompts, size, original_size, multimask = FORWARDS[name]
    oracle, sam = pair(SQUARE, seed)
    given = inputs(seed, size, prompts)
    out = forward(sam, given, multimask_output=multimask, original_size=original_size)
    masks, iou, low_res = torch_forward(oracle, given, original_size, multimask)
    np.testing.assert_allclose(out.low_res_logits, low_res, atol=2e-5)
    np.testing.assert_allclose(out.iou, iou, atol=1e-5)
    assert out.masks.shape == masks.shape == (2, 3 if multimask else 1, *original_size)
    # a logit this close to 0 may fall on either side
    unclear = oracle.postprocess_masks(low_res, size, original_size).abs().numpy() < 5e-5
    np.testing.assert_array_equal(out.masks | unclear, masks.numpy() | unclear)
    assert unclear.mean() < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_preprocess_is_torchs(dtype):
    oracle, sam = pair(SQUARE, 0)
    images = np.asarray(inputs(0, (96, 131), ())["images"]).astype(dtype)
    expected = oracle.preprocess(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    got = sam.preprocess(jnp.asarray(images))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(145, 144), (144, 145)])
def test_too_large_images_are_named(size):
    _, sam = pair(SQUARE, 0)
    with pytest.raises(UserError) as error:
        sam.preprocess(jnp.zeros((1, *size, 3)))
    told(error, f"{size[0]} x {size[1]}", "144 x 144")


@pytest.mark.parametrize("original_size", [(131, 77), (104, 160)])
def test_postprocessing_is_torchs_with_unequal_sides(original_size):
    _, sam = pair(CFG, 0)
    logits = np.random.default_rng(1).standard_normal((2, 3, 28, 48)).astype(np.float32)
    got = sam.postprocess_masks(jnp.asarray(logits), (104, 160), original_size)
    interpolate = functools.partial(
        torch.nn.functional.interpolate, mode="bilinear", align_corners=False
    )
    padded = interpolate(torch.from_numpy(logits), CFG.image_size)
    expected = interpolate(padded[..., :104, :160], original_size)
    np.testing.assert_allclose(got, expected, atol=5e-5)


def test_masks_have_the_size_of_the_images_by_default():
    _, sam = pair(SQUARE, 0)
    given = inputs(2, (96, 120), ("boxes",))
    out = jax.eval_shape(lambda given: sam(**given), given)
    assert out.masks.shape == (2, 1, 96, 120)
    assert out.low_res_logits.shape == (2, 1, 36, 36)


def test_bfloat16_stays_near_float32():
    _, sam = pair(SQUARE, 0)
    cfg = dataclasses.replace(SQUARE, dtype="bfloat16")
    graph = nnx.graphdef(files.abstract(lambda rngs: Sam(cfg, rngs=rngs)))
    half = nnx.merge(graph, nnx.state(sam))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(half)))
    embeddings = jax.eval_shape(lambda: half.encode_image(jnp.zeros((1, 144, 144, 3))))
    assert embeddings.dtype == jnp.bfloat16
    given = inputs(3, (96, 144), ("points", "labels"))
    settings = {"multimask_output": False, "original_size": (130, 195)}
    got, expected = forward(half, given, **settings), forward(sam, given, **settings)
    assert got.low_res_logits.dtype == got.iou.dtype == jnp.float32
    # measured: 0.042 of logits up to 2.4, 0.0033 of the IoU, 0.3 % of the pixels
    assert jnp.abs(got.low_res_logits - expected.low_res_logits).max() < 0.1
    assert jnp.abs(got.iou - expected.iou).max() < 0.01
    assert (got.masks != expected.masks).mean() < 0.01


@pytest.mark.exhaustive
def test_random_weights_neither_vanish_nor_explode():
    sam = Sam(SQUARE, rngs=nnx.Rngs(0))
    given = inputs(4, (96, 144), ("points", "labels"))

    @jax.jit
    def run(sam):
        embeddings = sam.encode_image(sam.preprocess(given["images"]))
        return embeddings, sam(**given).low_res_logits

    embeddings, logits = run(sam)
    assert 0.5 < embeddings.std() < 2
    assert 0.02 < logits.std() < 2
