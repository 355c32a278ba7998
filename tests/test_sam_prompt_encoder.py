import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import told
from sam_pairs import CFG, pair

from prosam_jax.errors import UserError


def encoders(seed):
    oracle, sam = pair(CFG, seed)
    return oracle.prompt_encoder, sam.prompt_encoder


def inputs(seed, batch=3):
    rng = np.random.default_rng(seed)
    height, width = CFG.image_size
    values = {
        "points": rng.uniform(0, (width, height), (batch, 5, 2)).astype(np.float32),
        "labels": np.tile(np.array([1, 0, -1, 1, 0], np.int32), (batch, 1)),
        "boxes": rng.uniform(0, height, (batch, 4)).astype(np.float32),
        "masks": 4 * rng.standard_normal((batch, 28, 48, 1)).astype(np.float32),
        "prompts": rng.standard_normal((batch, 6, 256)).astype(np.float32),
    }
    return {name: jnp.asarray(value) for name, value in values.items()}


def torch_encode(oracle, given):
    given = {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
    points = (given["points"], given["labels"]) if "points" in given else None
    masks = given["masks"].permute(0, 3, 1, 2) if "masks" in given else None
    with torch.no_grad():
        sparse, dense = oracle(points, given.get("boxes"), masks)
    return sparse.numpy(), dense.permute(0, 2, 3, 1).numpy()


KINDS = [(), ("points", "labels"), ("boxes",), ("masks",)]
COMBINATIONS = {
    "+".join(names) or "nothing": names
    for names in (
        tuple(itertools.chain(*chosen))
        for n in range(4)
        for chosen in itertools.combinations(KINDS[1:], n)
    )
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_combination_is_torchs(combination, seed):
    oracle, encoder = encoders(seed)
    given = {name: inputs(seed)[name] for name in COMBINATIONS[combination]}
    sparse, dense = encoder(**given)
    expected_sparse, expected_dense = torch_encode(oracle, given)
    assert sparse.shape == expected_sparse.shape
    assert dense.shape == expected_dense.shape
    np.testing.assert_allclose(sparse, expected_sparse, atol=5e-5)
    np.testing.assert_allclose(dense, expected_dense, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_dense_positions_are_torchs(seed):
    oracle, encoder = encoders(seed)
    expected = oracle.get_dense_pe().permute(0, 2, 3, 1)
    assert encoder.dense_pe().shape == (1, 7, 12, 256)
    np.testing.assert_allclose(encoder.dense_pe(), expected, atol=2e-5)


def test_padding_point_only_without_box():
    _, encoder = encoders(0)
    given = inputs(0)
    padding = encoder.not_a_point_embed.embedding[...]
    points = {name: given[name] for name in ("points", "labels")}
    alone, _ = encoder(**points)
    boxed, _ = encoder(**points, boxes=given["boxes"])
    assert alone.shape[1] == 6
    np.testing.assert_array_equal(alone[:, -1], np.tile(padding, (3, 1)))
    assert boxed.shape[1] == 7  # five points, two corners


def test_learned_prompts_alone_pass_unchanged():
    _, encoder = encoders(0)
    prompts = inputs(2)["prompts"]
    sparse, dense = encoder(prompts=prompts)
    np.testing.assert_array_equal(sparse, prompts)
    no_mask = encoder.no_mask_embed.embedding[...].reshape(1, 1, 1, 256)
    np.testing.assert_array_equal(dense, np.broadcast_to(no_mask, (3, 7, 12, 256)))


def test_learned_prompts_come_last():
    _, encoder = encoders(0)
    given = inputs(3)
    sparse, _ = encoder(**given)
    others, _ = encoder(**{name: given[name] for name in given if name != "prompts"})
    np.testing.assert_array_equal(sparse, jnp.concatenate([others, given["prompts"]], axis=1))


def test_works_under_jit():
    _, encoder = encoders(0)
    given = inputs(4)
    jitted = jax.jit(lambda encoder, given: encoder(**given))(encoder, given)
    for got, expected in zip(jitted, encoder(**given), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("alone", ["points", "labels"])
def test_points_and_labels_come_together(alone):
    _, encoder = encoders(0)
    with pytest.raises(UserError) as error:
        encoder(**{alone: inputs(0)[alone]})
    told(error, "points", "labels")


def test_wrong_mask_size_is_named():
    _, encoder = encoders(0)
    with pytest.raises(UserError) as error:
        encoder(masks=jnp.zeros((1, 48, 28, 1)))
    told(error, "48 x 28", "28 x 48")
