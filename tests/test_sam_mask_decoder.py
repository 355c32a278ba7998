import functools
import json

import golden_modules
import golden_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sam_pairs import CFG, pair

from prosam_jax import equations, resize

H, W = CFG.embedding_size


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(seed):
    """Image embeddings, sparse and dense prompts."""
    shapes = (3, H, W, 256), (3, 6, 256), (3, H, W, 256)
    return [random(100 * seed + i, *shape) for i, shape in enumerate(shapes)]


def to_torch(x):
    x = torch.from_numpy(x)
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def torch_decode(oracle, image, sparse, dense, multimask):
    """One image at a time: stock SAM repeats the image for every row of prompts."""
    image_pe = oracle.prompt_encoder.get_dense_pe()
    rows = zip(*(x.split(1) for x in (image, sparse, dense)), strict=True)
    results = [oracle.mask_decoder(i, image_pe, s, d, multimask) for i, s, d in rows]
    masks, iou = zip(*results, strict=True)
    return torch.cat(masks), torch.cat(iou)


apply = jax.jit(lambda block, *arrays: block(*arrays))


@functools.partial(jax.jit, static_argnames="multimask")
def decode(sam, image, sparse, dense, multimask=False):
    return sam.decode(image, sparse, dense, multimask_output=multimask)


@jax.jit
@functools.partial(jax.grad, argnums=1)
def prompt_gradient(sam, sparse, image, dense, weight):
    masks, iou = sam.decode(image, sparse, dense)
    return (masks * weight).sum() + iou.sum()


@pytest.mark.parametrize("index", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("seed", [0, 1])
def test_two_way_block_is_torchs(index, seed):
    oracle, sam = pair(CFG, seed)
    shapes = {"tokens": (2, 9, 256), "image": (2, H * W, 256)}
    shapes |= {"token_pe": (2, 9, 256), "image_pe": (1, H * W, 256)}
    arrays = [random(i, *shape) for i, shape in enumerate(shapes.values())]
    expected = oracle.mask_decoder.transformer.layers[index](*map(to_torch, arrays))
    got = apply(sam.mask_decoder.transformer.layers[index], *arrays)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("multimask", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_decoder_is_torchs(multimask, seed):
    oracle, sam = pair(CFG, seed)
    arrays = inputs(seed)
    expected_masks, expected_iou = torch_decode(oracle, *map(to_torch, arrays), multimask)
    masks, iou = decode(sam, *arrays, multimask=multimask)
    assert masks.shape == (3, 3 if multimask else 1, 4 * H, 4 * W)
    np.testing.assert_allclose(masks, expected_masks, atol=2e-5)
    np.testing.assert_allclose(iou, expected_iou, atol=1e-5)


def test_vmap_over_samples_of_prompts_shares_the_image():
    _, sam = pair(CFG, 0)
    image, _, dense = inputs(4)
    sparse = random(8, 4, 3, 6, 256)
    masks, iou = jax.vmap(decode, in_axes=(None, None, 0, None))(sam, image, sparse, dense)
    assert masks.shape == (4, 3, 1, 4 * H, 4 * W)
    for k in range(4):
        expected_masks, expected_iou = decode(sam, image, sparse[k], dense)
        np.testing.assert_allclose(masks[k], expected_masks, atol=2e-5)
        np.testing.assert_allclose(iou[k], expected_iou, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_of_prompts_is_torchs(seed):
    oracle, sam = pair(CFG, seed)
    image, sparse, dense = inputs(seed)
    weight = random(9, 3, 1, 4 * H, 4 * W)
    leaf = to_torch(sparse).requires_grad_()
    masks, iou = torch_decode(oracle, to_torch(image), leaf, to_torch(dense), False)
    ((masks * torch.from_numpy(weight)).sum() + iou.sum()).backward()
    expected = leaf.grad.numpy()
    got = prompt_gradient(sam, sparse, image, dense, weight)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_gradient_is_finite_at_extreme_prompts(size):
    _, sam = pair(CFG, 0)
    image, sparse, dense = inputs(5)
    weight = random(9, 3, 1, 4 * H, 4 * W)
    gradient = prompt_gradient(sam, np.float32(size) * sparse, image, dense, weight)
    assert jnp.isfinite(gradient).all()


def nhwc(x):
    return jnp.moveaxis(x, 1, -1)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@functools.cache
def golden_run():
    """Everything the golden file keeps of SAM's heads, by the names in the file."""
    with np.load(golden_recipe.GOLDEN / "sam_heads.npz") as file:
        golden = dict(file)
    meta = json.loads(str(golden["meta"]))
    embeddings = golden_recipe.normal(meta["emb_seed"], (2, 256, 16, 16))
    prompts = golden_recipe.normal(meta["prompt_seed"], (2, 50, 256))
    golden_recipe.check_input(golden, "image_embeddings", embeddings)
    golden_recipe.check_input(golden, "prompt_in", prompts)
    target = golden_recipe.unpack_bits(golden, "target")

    def loss_and_steps(prompts, embeddings, sam, target):
        sparse, dense = sam.prompt_encoder(prompts=prompts)
        image_pe, decoder = sam.prompt_encoder.dense_pe(), sam.mask_decoder
        tokens, image = decoder.attend(embeddings, image_pe, sparse, dense)
        upscaled = decoder.upscale(image)
        masks = decoder.predict_masks(tokens, upscaled, range(4))
        low_res = masks[:, :1]
        logits = resize.bilinear(nhwc(low_res), (128, 128), align_corners=True)[..., 0]
        parts = [f(logits, target) for f in (equations.bce_loss, equations.dice_loss)]
        loss = equations.mask_loss(logits, target)
        steps = {"sparse": sparse, "dense": dense, "dense_pe": image_pe, "tokens_out": tokens}
        steps |= {"src_out": image, "upscaled": upscaled, "all_masks": masks}
        steps |= {"all_iou_pred": decoder.predict_iou(tokens), "low_res_logits": low_res}
        return loss, steps | {"logits": logits, "loss": jnp.stack([loss, *parts])}

    # Compiled as for users: without LLVM's optimisation sums are less exact than torch's.
    options = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    }
    grad = jax.grad(loss_and_steps, argnums=(0, 1), has_aux=True)
    run = jax.jit(grad, compiler_options=options)
    sam = golden_modules.sam((16, 16))
    (grad_prompts, grad_image), steps = run(prompts, nhwc(embeddings), sam, target)
    steps |= {"prompts": prompts, "grad_prompts": grad_prompts, "grad_image_embeddings": grad_image}
    return golden, {name: np.asarray(x) for name, x in steps.items()}


def test_golden_steps_of_the_decoder():
    golden, got = golden_run()
    check = functools.partial(golden_recipe.check_output, golden)
    assert bool(golden["sparse_equals_prompts"])
    np.testing.assert_array_equal(got["sparse"], got["prompts"])
    assert nchw(got["dense"]).shape == tuple(golden["dense_embedding_shape"])
    check("dense_pe", nchw(got["dense_pe"]), atol=1e-5)
    check("tokens_out", got["tokens_out"], atol=1e-5)
    check("src_out", got["src_out"].reshape(2, -1, 256), atol=1e-5)
    cells = got["upscaled"].transpose(0, 1, 3, 5, 2, 4, 6, 7)  # b h 2 2 w 2 2 d
    check("upscaled", nchw(cells.reshape(2, 64, 64, -1)), atol=1e-5)
    check("all_mask_means", got["all_masks"].mean((2, 3)), atol=2e-5)
    check("all_iou_pred", got["all_iou_pred"], atol=1e-5)
    check("low_res_logits", got["low_res_logits"], atol=2e-5)


def test_golden_loss_and_gradients():
    golden, got = golden_run()
    check = functools.partial(golden_recipe.check_output, golden)
    check("logits", got["logits"][:, None], atol=5e-5)
    np.testing.assert_allclose((got["logits"] > 0).mean(), golden["frac_positive"][0], atol=1e-4)
    np.testing.assert_allclose(got["loss"], golden["loss"], rtol=2e-6)
    check("grad_prompts", got["grad_prompts"], rel=2e-5)
    check("grad_image_embeddings", nchw(got["grad_image_embeddings"]), rel=2e-5)
