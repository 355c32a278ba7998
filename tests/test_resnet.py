import json

import golden_modules
import jax
import pytest
from flax import nnx
from golden_recipe import check_input, image

from prosam_jax import backbone
from prosam_jax.config import BackboneConfig


@pytest.fixture(scope="module")
def resnet():
    return golden_modules.resnet()


@pytest.mark.parametrize("i", [0, 1], ids=["square", "odd sizes"])
def test_every_stage_matches_torch(golden, resnet, i):
    arrays = golden("backbone_resnet50")
    meta = json.loads(str(arrays["meta"]))
    images = image(*meta["inputs"][i])
    check_input(arrays, f"in{i}", images)

    @jax.jit
    def stages(x):
        layer1 = x = resnet.layer0(x)
        for block in resnet.layer1:
            layer1 = block(layer1)
        return x, layer1

    layer0, layer1 = stages(golden_modules.nhwc(images))
    taps = jax.jit(lambda x: backbone.query_taps(resnet, x))(golden_modules.nhwc(images))
    found = {
        "layer0": layer0,
        "layer1": layer1,
        "layer2": taps.merged[..., :512],
        "layer3": taps.merged[..., 512:],
        "layer4": taps.prior,
    }
    for name, x in found.items():
        golden_modules.check_map(arrays, f"in{i}_{name}", x, meta)


def test_random_features_keep_their_size():
    model = backbone.build(BackboneConfig(name="tiny"), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 40, 56, 3))
    merged, layer3 = jax.jit(model.trunk)(x)
    assert merged.shape == (1, 5, 7, model.merged_channels)
    assert 0.1 < float(layer3.std()) < 30
