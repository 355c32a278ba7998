"""A backbone next to its plain PyTorch twin."""

import golden_modules
import jax
import numpy as np
import torch

from prosam_jax import backbone


def of_twin(build, twin, rules, ignored):
    """The module that `build` makes, with the twin's weights."""
    source = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    return golden_modules.filled(lambda rngs: build(rngs=rngs), source, rules, ignored)


def check_query(model, twin, images):
    """Compares the features of targets and returns them."""
    taps = jax.jit(backbone.target_taps)(model, golden_modules.nhwc(images))
    _check(taps, *twin(torch.from_numpy(images)))
    return taps


def check_support(model, twin, images, annotation):
    """Compares the features of references, where the last stage sees and keeps masked ones."""
    taps = jax.jit(backbone.reference_taps)(
        model, golden_modules.nhwc(images), annotation.astype(np.float32)
    )
    merged, last = twin.trunk(torch.from_numpy(images))
    mask = torch.from_numpy(annotation)[:, None].float()
    _check(taps, merged, twin.tail(last * mask) * mask)


def _check(taps, merged, prior):
    """Float32's noise is 2e-6 of the largest value."""
    for x, expected in ((taps.merged, merged), (taps.prior, prior)):
        expected = np.moveaxis(expected.numpy(), 1, -1)
        atol = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(x, expected, rtol=0, atol=atol)
