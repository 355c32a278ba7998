import json
import re

import backbone_pairs
import golden_modules
import jax
import numpy as np
import pytest
from flax import nnx
from golden_recipe import check_input, image, normal

from prosam_jax import backbone
from prosam_jax.backbone import vgg
from prosam_jax.convert import engine
from prosam_jax.convert.rules.vgg import IGNORED, RULES
from prosam_jax.weights import files
from torch_models import vgg as torch_vgg


@pytest.mark.parametrize("i", [0, 1], ids=["square", "odd sizes"])
def test_every_stage_matches_torch(golden, i):
    arrays = golden("backbone_vgg16")
    meta = json.loads(str(arrays["meta"]))
    images = image(*meta["inputs"][i])
    check_input(arrays, f"in{i}", images)

    @jax.jit
    def stages(model, x):
        layer0 = model.layer0(x)
        layer1 = model.layer1(layer0)
        taps = backbone.target_taps(model, x)
        return {
            "layer0": layer0,
            "layer1": layer1,
            "layer2": model.layer2(layer1),
            "layer2_resized": taps.merged[..., :256],
            "layer3": taps.merged[..., 256:],
            "layer4": taps.prior,
        }

    found = stages(golden_modules.vgg(), golden_modules.nhwc(images))
    for name, x in found.items():
        golden_modules.check_map(arrays, f"in{i}_{name}", x, meta)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [("vgg16", 0), ("vgg16_bn", 1)])
def test_features_match_torch(name, seed):
    twin = getattr(torch_vgg, name)(seed)
    model = backbone_pairs.of_twin(getattr(vgg, name), twin, RULES[name], IGNORED)
    images = image(seed, 2, 65, 97)
    taps = backbone_pairs.check_query(model, twin, images)
    backbone_pairs.check_support(model, twin, images, normal(seed, (2, 5, 7)) > 0)
    assert taps.merged.shape == (2, 5, 7, model.merged_channels)
    assert taps.prior.shape == (2, 5, 7, 512)


@pytest.mark.parametrize(
    ("name", "starts"), [("vgg16", (0, 5, 10, 17, 24)), ("vgg16_bn", (0, 7, 14, 24, 34))]
)
def test_both_namings_make_the_same_network(name, starts):
    def vrp_name(match):
        stage = sum(start <= int(match[1]) for start in starts) - 1
        return f"layer{stage}.{int(match[1]) - starts[stage]}"

    plain = {n: x.numpy() for n, x in getattr(torch_vgg, name)(0).state_dict().items()}
    vrp = {re.sub(r"features\.(\d+)", vrp_name, n): x for n, x in plain.items()}
    plain |= {f"classifier.{i}.{n}": np.zeros(1) for i in (0, 3, 6) for n in ("weight", "bias")}
    vrp |= {"downsample_query.0.weight": np.zeros(1), "transformer_decoder.x": np.zeros(1)}
    specs = files.leaves(files.abstract(lambda rngs: getattr(vgg, name)(rngs=rngs)))
    arrays, again = (engine.convert(x, RULES[name], IGNORED, specs) for x in (plain, vrp))
    assert arrays.keys() == again.keys() == specs.keys()
    for path, x in arrays.items():
        np.testing.assert_array_equal(x, again[path])


@pytest.mark.parametrize(("name", "count"), [("vgg16", 14_714_688), ("vgg16_bn", 14_723_136)])
def test_parameter_count_of_torchvision(name, count):
    """As published, less the 123,642,856 parameters of the classifier."""
    model = files.abstract(lambda rngs: getattr(vgg, name)(rngs=rngs))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
