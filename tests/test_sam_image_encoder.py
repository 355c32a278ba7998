import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import told
from sam_pairs import CFG, pair
from segment_anything.modeling import image_encoder as reference

from prosam_jax.config import SAMConfig
from prosam_jax.errors import UserError
from prosam_jax.sam import image_encoder

CONFIGS = {
    "wide": CFG,
    "tall": dataclasses.replace(CFG, image_size=(208, 96), decoder_depth=1),
    "exact_windows_no_rel_pos": dataclasses.replace(
        CFG, image_size=(80, 240), use_rel_pos=False, decoder_depth=1
    ),
    "all_global_and_pixels_left_over": dataclasses.replace(
        CFG, image_size=(117, 207), window_size=0, decoder_depth=1
    ),
    "no_abs_pos": dataclasses.replace(CFG, use_abs_pos=False, decoder_depth=1),
}


def encoders(name, seed=0):
    oracle, sam = pair(CONFIGS[name], seed)
    return oracle.image_encoder, sam.image_encoder


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def torch_encode(oracle, x):
    return oracle(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


apply = jax.jit(lambda module, x: module(x))


@pytest.mark.parametrize(("h", "w", "size"), [(7, 12, 5), (13, 6, 5), (5, 15, 5), (3, 4, 7)])
def test_windows_are_torchs_and_come_back(h, w, size):
    x = random(0, 2, h, w, 3)
    expected, _ = reference.window_partition(torch.from_numpy(x), size)
    windows = image_encoder.to_windows(jnp.asarray(x), size)
    np.testing.assert_array_equal(windows, expected)
    np.testing.assert_array_equal(image_encoder.from_windows(windows, h, w), x)


@pytest.mark.parametrize("length", [7, 12, 4, 1])
def test_relative_positions_are_torchs(length):
    table = random(1, 13, 6)  # trained on 7 positions: as it is, longer, shorter, shortest
    expected = reference.get_rel_pos(length, length, torch.from_numpy(table))
    got = image_encoder.relative_positions(jnp.asarray(table), length)
    np.testing.assert_allclose(got, expected, atol=5e-6)


@pytest.mark.parametrize("index", [0, 1], ids=["windowed", "global"])
@pytest.mark.parametrize("name", ["wide", "exact_windows_no_rel_pos"])
def test_attention_is_torchs(name, index):
    oracle, encoder = encoders(name)
    x = random(2, 2, *CONFIGS[name].embedding_size, 48)
    expected = torch.from_numpy(x)
    if size := oracle.blocks[index].window_size:
        expected, padded = reference.window_partition(expected, size)
    expected = oracle.blocks[index].attn(expected)
    if size:
        expected = reference.window_unpartition(expected, size, padded, x.shape[1:3])
    np.testing.assert_allclose(apply(encoder.blocks[index].attn, x), expected, atol=1e-5)


@pytest.mark.parametrize("positions", [True, False], ids=["rel_pos", "no_rel_pos"])
def test_forms_of_attention_are_equal(positions):
    b, h, w, n, d = 2, 5, 7, 3, 6
    q, k, v, weight = random(3, 4, b, h, w, n, d)
    tables = [jnp.asarray(random(4, m, m, d)) if positions else None for m in (h, w)]

    def run(attend):
        def loss(q, k, v):
            out = attend(q, k, v, *tables)
            return (out * weight).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    plain = image_encoder.attend
    whole = run(functools.partial(plain, limit=10**6))
    others = {
        "two rows at a time, the last alone": functools.partial(plain, limit=2 * b * w * h * w),
        "fused": functools.partial(image_encoder.attend_fused, implementation="xla"),
    }
    for name, attend in others.items():
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4, err_msg=name),
            run(attend),
            whole,
        )


@pytest.mark.parametrize("index", [0, 1], ids=["windowed", "global"])
@pytest.mark.parametrize("seed", [0, 1])
def test_block_is_torchs(index, seed):
    oracle, encoder = encoders("wide", seed)
    x = random(seed, 2, 7, 12, 48)
    expected = oracle.blocks[index](torch.from_numpy(x))
    np.testing.assert_allclose(apply(encoder.blocks[index], x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "seed"), [("wide", 1), *((name, 0) for name in CONFIGS if name != "no_abs_pos")]
)
def test_encoder_is_torchs(name, seed):
    oracle, encoder = encoders(name, seed)
    cfg = CONFIGS[name]
    x = random(seed, 2, *cfg.image_size, 3)
    got = apply(encoder, x)
    assert got.shape == (2, *cfg.embedding_size, 256)
    np.testing.assert_allclose(got, torch_encode(oracle, x), atol=5e-5)  # values up to 5


def test_any_size_without_absolute_positions():
    oracle, encoder = encoders("no_abs_pos")
    x = random(9, 1, 203, 117, 3)  # 12 x 7 patches and some pixels
    np.testing.assert_allclose(apply(encoder, x), torch_encode(oracle, x), atol=5e-5)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("wide", (112, 176), ("112 x 176", "112 x 192")),
        ("wide", (192, 112), ("192 x 112", "112 x 192")),
        ("no_abs_pos", (15, 64), ("15 x 64", "16")),
    ],
)
def test_wrong_sizes_are_named(name, size, words):
    _, encoder = encoders(name)
    with pytest.raises(UserError) as error:
        encoder(jnp.zeros((1, *size, 3)))
    told(error, *words)


@pytest.mark.exhaustive
def test_published_width_and_depth_are_torchs():
    cfg = dataclasses.replace(SAMConfig.vit_b(), image_size=(512, 640))
    oracle, sam = pair(cfg, 0)
    x = random(14, 1, 512, 640, 3)
    expected = torch_encode(oracle.image_encoder, x)
    difference = np.abs(apply(sam.image_encoder, x) - expected).max() / np.abs(expected).max()
    assert difference < 2e-5
