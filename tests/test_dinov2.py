import functools
import re

import backbone_pairs
import golden_modules
import jax
import numpy as np
import pytest
import torch
from flax import nnx
from golden_recipe import image, normal
from transformers import Dinov2Config, Dinov2Model

from prosam_jax import backbone
from prosam_jax.backbone import dinov2
from prosam_jax.config import DistributionConfig, PromptConfig
from prosam_jax.convert import engine
from prosam_jax.convert.rules.dinov2 import IGNORED, RULES
from prosam_jax.errors import UserError
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights import files
from torch_models import dinov2 as torch_dinov2

DIM, DEPTH, HEADS, GRID = 24, 4, 3, 5
HUGGING_FACE = (
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.", ".attention."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
)
GRIDS = ((3, 8), (5, 7), (1, 9), (6, 5), (11, 1), (5, 5))


@functools.cache
def _pair(seed, depth=DEPTH):
    twin = torch_dinov2.random(DIM, depth, HEADS, seed, GRID)

    def build(*, rngs):
        return dinov2.DINOv2(DIM, depth, HEADS, grid=GRID, rngs=rngs)

    return backbone_pairs.of_twin(build, twin, RULES, IGNORED), twin


def _huggingface(twin):
    """Hugging Face's module with the twin's weights."""
    depth, dim, grid = len(twin.blocks), twin.pos_embed.shape[-1], twin.grid
    config = Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=twin.blocks[0].attn.num_heads,
        image_size=14 * grid,
        patch_size=14,
    )
    model = Dinov2Model(config).eval().requires_grad_(False)
    state = {}
    for name, tensor in twin.state_dict().items():
        for pattern, theirs in HUGGING_FACE:
            name = re.sub(pattern, theirs, name)
        if ".qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".qkv.", f".{part}_proj.")] = rows
        else:
            state[name] = tensor
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_the_twin_is_hugging_faces(seed):
    twin = torch_dinov2.random(DIM, DEPTH, HEADS, seed, GRID)
    images = torch.from_numpy(image(seed, 2, 14 * GRID, 14 * GRID))
    expected = _huggingface(twin)(images, output_hidden_states=True)
    outputs = twin.tokens(images)
    for found, x in zip(outputs, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(found, x, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        twin.norm(outputs[-1]), expected.last_hidden_state, rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_positions_match_torch(seed):
    model, twin = _pair(seed)
    found = dict(zip(GRIDS, jax.jit(_positions)(model), strict=True))
    for size, x in found.items():
        assert x.shape == (1, 1 + size[0] * size[1], DIM)
        # torch computes the source positions in float32; ours are exact.
        np.testing.assert_allclose(x, twin.positions(*size), rtol=0, atol=1e-5, err_msg=str(size))
    np.testing.assert_array_equal(found[GRID, GRID], model.pos_embed[...])


def _positions(model):
    return [model.positions(size) for size in GRIDS]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_block_matches_torch(seed):
    model, twin = _pair(seed)
    images = image(seed, 2, 42, 98)
    found = jax.jit(_tokens)(model, golden_modules.nhwc(images))
    for x, expected in zip(found, twin.tokens(torch.from_numpy(images)), strict=True):
        atol = 1e-5 * float(expected.abs().max())
        np.testing.assert_allclose(x, expected, rtol=0, atol=atol)


def _tokens(model, images):
    x = model.tokens(images, (3, 7))
    return [x := block(x) for block in model.blocks]


@pytest.mark.parametrize(
    ("pixels", "patches"),
    [((65, 98), (5, 7)), ((72, 64), (5, 5)), ((5, 20), (1, 1))],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_features_of_any_size_match_torch(pixels, patches, seed):
    model, twin = _pair(seed)
    images = image(seed, 2, *pixels)
    taps = backbone_pairs.check_query(model, twin, images)
    assert taps.merged.shape == (2, *patches, model.merged_channels)
    assert taps.prior.shape == (2, *patches, DIM)
    annotation = normal(seed, (2, *patches)) > 0
    backbone_pairs.check_support(model, twin, images, annotation)


@pytest.mark.parametrize(("depth", "ends"), [(12, (6, 9, 12)), (24, (12, 18, 24))])
def test_the_features_are_the_ends_of_the_last_three_quarters(depth, ends):
    model, twin = _pair(0, depth)
    images = image(0, 1, 42, 70)
    taps = backbone_pairs.check_query(model, twin, images)
    blocks = twin.tokens(torch.from_numpy(images))
    second, third, last = (
        twin.norm(blocks[end - 1])[:, 1:].numpy().reshape(1, 3, 5, DIM) for end in ends
    )
    merged = np.concatenate([second, third], axis=-1)
    for found, expected in ((taps.merged, merged), (taps.prior, last)):
        atol = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixels", "patches"),
    [
        pytest.param((512, 520), (37, 37), marks=pytest.mark.exhaustive),
        ((100, 160), (7, 11)),
    ],
    ids=str,
)
def test_vits14_matches_torch(pixels, patches):
    """In float64, for torch resizes with float32 coordinates: on noise an error of 2e-5."""
    twin = torch_dinov2.vits14(0)
    model = backbone_pairs.of_twin(dinov2.vits14, twin, RULES, IGNORED)
    images = image(0, 1, *pixels)
    taps = jax.jit(backbone.target_taps)(model, golden_modules.nhwc(images))
    assert taps.merged.shape == (1, *patches, 768)
    for x, expected in zip(taps, twin.double()(torch.from_numpy(images).double()), strict=True):
        expected = np.moveaxis(expected.numpy(), 1, -1)
        np.testing.assert_allclose(x, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "width", "taps", "count"),
    [
        ("vits14", 384, (5, 8, 11), 22_056_576),
        ("vitb14", 768, (5, 8, 11), 86_580_480),
        ("vitl14", 1024, (11, 17, 23), 304_368_640),
    ],
)
def test_published_sizes(name, width, taps, count):
    """As published, less the mask token; the prompt encoder takes both middle blocks."""
    model = files.abstract(lambda rngs: getattr(dinov2, name)(rngs=rngs))
    assert model.pos_embed.shape == (1, 1370, width)
    assert model.taps == taps
    assert {block.attn.num_heads for block in model.blocks} == {width // 64}
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == count - width
    with torch.device("meta"):
        twin = torch_dinov2.DINOv2(width, taps[-1] + 1, width // 64)
    assert sum(x.numel() for x in twin.state_dict().values()) == count
    encoder = files.abstract(
        lambda rngs: ReferencePromptEncoder(
            PromptConfig(), DistributionConfig(), model.merged_channels, rngs=rngs
        )
    )
    assert encoder.features.reduce.kernel.shape[-2:] == (2 * width, 256)


def test_checkpoints_with_registers_are_refused():
    model, twin = _pair(0)
    source = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    source["register_tokens"] = np.zeros((1, 4, DIM), np.float32)
    with pytest.raises(UserError, match="register_tokens"):
        engine.convert(source, RULES, IGNORED, files.leaves(model))
