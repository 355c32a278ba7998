import re

import numpy as np
import pytest
import torch
from conftest import told
from efficientnet_lite_pytorch import EfficientNet
from golden_recipe import torch_weights

from prosam_jax import backbone, cli
from prosam_jax.backbone.resnet import resnet50
from prosam_jax.config import BackboneConfig
from prosam_jax.convert import backbone_to_flax, engine
from prosam_jax.weights import files
from torch_models import dinov2, resnet, vgg

LEARNED = ("downsample_query.", "merge_1.", "transformer_decoder.")
STEM = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}


def _run(checkpoint, out, model="resnet50"):
    return cli.main(
        [
            "weights",
            "convert",
            "backbone",
            "--model",
            model,
            "--checkpoint",
            str(checkpoint),
            "--out",
            str(out),
        ]
    )


def _resnet50_v2_name(name):
    return re.sub(r"^layer0\.(\d)", lambda match: STEM[match[1]], name)


@pytest.fixture(scope="module")
def vrp_state():
    """Names as in a VRP-SAM checkpoint, without its learned part."""
    state = torch_weights("params_vrp_resnet50")
    return {n: torch.from_numpy(x) for n, x in state.items() if not n.startswith(LEARNED)}


@pytest.fixture
def resnet50_v2(vrp_state):
    """Names as in `resnet50_v2.pth`; one number stands for each tensor."""
    return {
        _resnet50_v2_name(name): torch.zeros(()).expand(x.shape) for name, x in vrp_state.items()
    }


def _error(capsys, tmp_path, state):
    torch.save(state, tmp_path / "r.pth")
    assert _run(tmp_path / "r.pth", tmp_path / "out" / "r.safetensors") == 1
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


@pytest.mark.slow
def test_both_namings_make_the_same_network(vrp_state, tmp_path, capsys):
    norms = [name for name in vrp_state if name.endswith("running_var")]
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(5) for name in norms
    }
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    plain = {_resnet50_v2_name(n): x for n, x in (vrp_state | counters).items()} | classifier
    vrp = vrp_state | {"merge_1.0.weight": torch.zeros(256, 513, 1, 1)}
    torch.save(plain, tmp_path / "plain.pth")
    torch.save({f"module.{name}": x for name, x in vrp.items()}, tmp_path / "vrp.pth")
    nets = []
    for name in ("plain", "vrp"):
        out = tmp_path / f"{name}.safetensors"
        assert _run(tmp_path / f"{name}.pth", out) == 0
        nets.append(
            files.load(
                lambda rngs: resnet50(rngs=rngs),
                out,
                kind="backbone",
                architecture="resnet50",
                made_by="",
            )
        )
    printed = capsys.readouterr().out
    assert r"ignored 55 tensors .*\.num_batches_tracked" in printed
    assert r"ignored 2 tensors fc\.(weight|bias)" in printed
    assert "ignored 1 tensors (downsample_query|merge_1|transformer_decoder)" in printed
    size = sum(x.numel() for x in vrp_state.values())
    assert f"converted 275 arrays, {size:,} parameters" in printed

    plain_arrays, vrp_arrays = (files.leaves(net) for net in nets)
    assert plain_arrays.keys() == vrp_arrays.keys()
    for name, x in plain_arrays.items():
        np.testing.assert_array_equal(x, vrp_arrays[name])
    stem, block = nets[0].stem[2], nets[0].layer3[0]
    np.testing.assert_array_equal(
        stem.conv.kernel[...], vrp_state["layer0.6.weight"].permute(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(stem.bn.running_var[...], vrp_state["layer0.7.running_var"])
    np.testing.assert_array_equal(block.conv2.bn.bias[...], vrp_state["layer3.0.bn2.bias"])
    np.testing.assert_array_equal(
        block.downsample.bn.weight[...], vrp_state["layer3.0.downsample.1.weight"]
    )


def test_torchvisions_stem_is_recognised(resnet50_v2, tmp_path, capsys):
    stem = ("conv2", "conv3", "bn2", "bn3")
    state = {n: x for n, x in resnet50_v2.items() if not n.startswith(stem)}
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    words = "7x7", "--model resnet50_torchvision", "resnet50_v2.pth"
    told(_error(capsys, tmp_path, state), tmp_path / "r.pth", *words)


TWINS = {
    "resnet50": lambda: resnet.ResNet((3, 4, 6, 3), deep_stem=True),
    "resnet101": lambda: resnet.ResNet((3, 4, 23, 3), deep_stem=True),
    "resnet50_torchvision": lambda: resnet.ResNet((3, 4, 6, 3), deep_stem=False),
    "resnet101_torchvision": lambda: resnet.ResNet((3, 4, 23, 3), deep_stem=False),
    "vgg16": lambda: vgg.VGG(batch_norm=False),
    "vgg16_bn": lambda: vgg.VGG(batch_norm=True),
    "dinov2_vits14": lambda: dinov2.DINOv2(384, 12, 6),
    "dinov2_vitb14": lambda: dinov2.DINOv2(768, 12, 12),
    "dinov2_vitl14": lambda: dinov2.DINOv2(1024, 24, 16),
    "dinov2_vitl14_reg": lambda: dinov2.DINOv2(1024, 24, 16, registers=4),
    "efficientnet_lite0": lambda: EfficientNet.from_name("efficientnet-lite0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", backbone_to_flax.MODELS)
def test_every_published_name_has_its_place(model):
    with torch.device("meta"):
        state = TWINS[model]().state_dict()
    # Names and shapes only: one number stands for each tensor.
    source = {name: np.broadcast_to(np.float32(0), tuple(x.shape)) for name, x in state.items()}
    table = backbone_to_flax.TABLES[model]
    specs = files.leaves(
        files.abstract(lambda rngs: backbone.build(BackboneConfig.of(name=model), rngs=rngs))
    )
    arrays = engine.convert(source, table.rules, table.ignored, specs)
    assert arrays.keys() == specs.keys()


def test_missing_and_unknown_tensors_are_reported(resnet50_v2, tmp_path, capsys):
    resnet50_v2["extra.weight"] = resnet50_v2.pop("layer2.1.bn3.bias")
    torch.save(resnet50_v2, tmp_path / "r.pth")
    out = tmp_path / "r.safetensors"
    assert _run(tmp_path / "r.pth", out) == 1
    told(
        capsys.readouterr().err,
        tmp_path / "r.pth",
        "backbone.name=resnet50",
        "no rule knows: extra.weight",
        "layer2.1.conv3.bn.bias",
    )
    assert not out.exists()


def test_stem_of_both_namings_at_once_is_refused(resnet50_v2, tmp_path, capsys):
    resnet50_v2["layer0.1.bias"] = torch.zeros(64)
    torch.save(resnet50_v2, tmp_path / "r.pth")
    assert _run(tmp_path / "r.pth", tmp_path / "r.safetensors") == 1
    assert "twice: stem.0.bn.bias" in capsys.readouterr().err


def test_unknown_model_is_named(tmp_path, capsys):
    assert _run(tmp_path / "r.pth", tmp_path / "r.safetensors", "resnet") == 1
    told(capsys.readouterr().err, "--model='resnet'", "resnet50, resnet101")
