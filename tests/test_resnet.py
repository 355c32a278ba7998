import json

import backbone_pairs
import golden_modules
import jax
import pytest
from flax import nnx
from golden_recipe import check_input, image

from prosam_jax import backbone
from prosam_jax.backbone import resnet
from prosam_jax.convert.rules.resnet import IGNORED, RULES
from prosam_jax.weights import files
from torch_models import resnet as torch_resnet


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1], ids=["square", "odd sizes"])
def test_every_stage_matches_torch(golden, i):
    arrays = golden("backbone_resnet50")
    meta = json.loads(str(arrays["meta"]))
    images = image(*meta["inputs"][i])
    check_input(arrays, f"in{i}", images)

    @jax.jit
    def stages(model, x):
        layer1 = layer0 = model.layer0(x)
        for block in model.layer1:
            layer1 = block(layer1)
        taps = backbone.target_taps(model, x)
        return {
            "layer0": layer0,
            "layer1": layer1,
            "layer2": taps.merged[..., :512],
            "layer3": taps.merged[..., 512:],
            "layer4": taps.prior,
        }

    found = stages(golden_modules.resnet(), golden_modules.nhwc(images))
    for name, x in found.items():
        golden_modules.check_map(arrays, f"in{i}_{name}", x, meta)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("resnet50_torchvision", 0),
        pytest.param("resnet50", 1, marks=pytest.mark.exhaustive),
        pytest.param("resnet101_torchvision", 0, marks=pytest.mark.exhaustive),
    ],
)
def test_features_match_torch(name, seed):
    twin = getattr(torch_resnet, name)(seed)
    model = backbone_pairs.of_twin(getattr(resnet, name), twin, RULES, IGNORED)
    taps = backbone_pairs.check_query(model, twin, image(seed, 2, 65, 97))
    assert model.merged_channels == 1536
    assert taps.merged.shape == (2, 9, 13, 1536)
    assert taps.prior.shape == (2, 9, 13, 2048)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50_torchvision", 23_508_032), ("resnet101_torchvision", 42_500_160)],
)
def test_parameter_count_of_torchvision(name, count):
    """As published, less the 2,049,000 parameters of the classifier."""
    model = files.abstract(lambda rngs: getattr(resnet, name)(rngs=rngs))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
