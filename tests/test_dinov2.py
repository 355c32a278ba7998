import functools
import itertools
import pathlib
import tempfile

import backbone_pairs
import golden_modules
import hugging_face
import jax
import numpy as np
import pytest
import torch
from conftest import told
from flax import nnx
from golden_recipe import image, normal

from prosam_jax import backbone
from prosam_jax.backbone import dinov2
from prosam_jax.config import DistributionConfig, PromptConfig
from prosam_jax.convert import checkpoint, engine
from prosam_jax.convert.rules.dinov2 import HF_RULES, IGNORED, RULES
from prosam_jax.errors import UserError
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights import files
from torch_models import dinov2 as torch_dinov2

DIM, DEPTH, HEADS, GRID = 24, 4, 3, 5
GRIDS = ((3, 8), (5, 7), (1, 9), (6, 5), (11, 1), (5, 5))


@functools.cache
def _pair(seed, depth=DEPTH, registers=0):
    twin = torch_dinov2.random(DIM, depth, HEADS, seed, GRID, registers)

    def build(*, rngs):
        return dinov2.DINOv2(DIM, depth, HEADS, grid=GRID, registers=registers, rngs=rngs)

    return backbone_pairs.of_twin(build, twin, RULES, IGNORED), twin


@functools.cache
def _of_hugging_face(seed, registers, grid=GRID):
    """transformers' network and the module with its weights, through a file of the former."""
    theirs = hugging_face.dinov2(DIM, DEPTH, HEADS, seed, grid=grid, registers=registers)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        source = checkpoint.read(pathlib.Path(folder) / "model.safetensors").tensors
        model = golden_modules.filled(
            lambda rngs: dinov2.DINOv2(
                DIM, DEPTH, HEADS, grid=grid, registers=registers, rngs=rngs
            ),
            source,
            HF_RULES,
            IGNORED,
        )
    return theirs, model


@pytest.mark.parametrize(
    ("registers", "size"),
    [
        # Without registers, transformers leaves out the offset for other sizes; the twin has it.
        (0, (GRID, GRID)),
        *itertools.product((1, 4), [(GRID, GRID), (7, 3), (2, 9), (11, 4), (1, 1)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_token_of_every_block_is_hugging_faces(seed, registers, size):
    """Also of sizes for which the table of positions is stretched, shrunk or both."""
    theirs, model = _of_hugging_face(seed, registers)
    images = image(seed, 2, 14 * size[0], 14 * size[1])
    expected = theirs(torch.from_numpy(images), output_hidden_states=True)
    found = _blocks(model, golden_modules.nhwc(images), size)
    assert found[0].shape == (2, 1 + registers + size[0] * size[1], DIM)
    for x, wanted in zip(found, expected.hidden_states, strict=True):
        atol = 1e-5 * float(wanted.abs().max())
        np.testing.assert_allclose(x, wanted, rtol=0, atol=atol)
    wanted = expected.last_hidden_state
    found = jax.jit(lambda norm, x: norm(x))(model.norm, found[-1])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@functools.partial(jax.jit, static_argnames="size")
def _blocks(model, images, size):
    x = model.tokens(images, size)
    return [x, *(x := block(x) for block in model.blocks)]


def test_registers_change_the_features_but_are_none():
    _, model = _of_hugging_face(0, 4)
    images = golden_modules.nhwc(image(0, 1, 70, 98))
    merged, last = jax.jit(lambda model, x: model.trunk(x))(model, images)
    assert (merged.shape, last.shape) == ((1, 5, 7, 2 * DIM), (1, 5, 7, DIM))
    registers = model.register_tokens[...]
    model.register_tokens[...] = 0 * registers
    _, without = jax.jit(lambda model, x: model.trunk(x))(model, images)
    model.register_tokens[...] = registers
    assert np.abs(last - without).max() > 1e-3


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_positions_match_torch(seed, registers):
    model, twin = _pair(seed, registers=registers)
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
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_features_of_any_size_match_torch(pixels, patches, seed, registers):
    model, twin = _pair(seed, registers=registers)
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
    ("name", "width", "taps", "count", "registers"),
    [
        ("vits14", 384, (5, 8, 11), 22_056_576, 0),
        ("vitb14", 768, (5, 8, 11), 86_580_480, 0),
        ("vitl14", 1024, (11, 17, 23), 304_368_640, 0),
        ("vitl14_reg", 1024, (11, 17, 23), 304_368_640 + 4 * 1024, 4),
    ],
)
def test_published_sizes(name, width, taps, count, registers):
    """As published, less the mask token; the prompt encoder takes both middle blocks."""
    model = files.abstract(lambda rngs: getattr(dinov2, name)(rngs=rngs))
    assert model.pos_embed.shape == (1, 1370, width)
    assert model.taps == taps
    assert {block.attn.num_heads for block in model.blocks} == {width // 64}
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == count - width
    with torch.device("meta"):
        twin = torch_dinov2.DINOv2(width, taps[-1] + 1, width // 64, registers=registers)
    assert sum(x.numel() for x in twin.state_dict().values()) == count
    encoder = files.abstract(
        lambda rngs: ReferencePromptEncoder(
            PromptConfig(), DistributionConfig(), model.merged_channels, rngs=rngs
        )
    )
    assert encoder.features.reduce.kernel.shape[-2:] == (2 * width, 256)


def test_registers_need_their_own_network():
    model, twin = _pair(0)
    source = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    source["register_tokens"] = np.zeros((1, 4, DIM), np.float32)
    with pytest.raises(UserError, match="register_tokens"):
        engine.convert(source, RULES, IGNORED, files.leaves(model))
    model, _ = _pair(0, registers=4)
    source["register_tokens"] = np.zeros((1, 3, DIM), np.float32)
    with pytest.raises(UserError, match=r"register_tokens \(1, 4, 24\)"):
        engine.convert(source, RULES, IGNORED, files.leaves(model))


def test_a_third_of_the_projections_is_missed():
    theirs, model = _of_hugging_face(0, 0)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        source = checkpoint.read(pathlib.Path(folder) / "model.safetensors").tensors
        name = "encoder.layer.1.attention.attention.key.weight"
        left = {x: y for x, y in source.items() if x != name}
        with pytest.raises(UserError) as error:
            engine.convert(left, HF_RULES, IGNORED, files.leaves(model))
        told(error, "1 paths left unfilled: blocks.1.attn.qkv.kernel")
        wrong = source | {name: source[name][:-1]}
        with pytest.raises(UserError) as error:
            engine.convert(wrong, HF_RULES, IGNORED, files.leaves(model))
        told(error, "blocks.1.attn.qkv.kernel (24, 24)", name, "(24, 23)")
