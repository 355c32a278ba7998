import numpy as np
import pytest
import torch
from golden_recipe import torch_weights

from convert import vrp_sam_to_flax
from prosam_jax import weights
from prosam_jax.config import DistributionConfig, PromptConfig
from prosam_jax.prompt.encoder import ReferencePromptEncoder

DECODER = "transformer_decoder.transformer_"


def _build(rngs):
    cfg = DistributionConfig(name="vrp")
    return ReferencePromptEncoder(PromptConfig(), cfg, 1536, rngs=rngs)


@pytest.fixture(scope="module")
def state():
    tensors = torch_weights("params_vrp_resnet50")
    backbone = {
        n: x[:1, :1] if x.ndim > 1 else x[:1] for n, x in tensors.items() if n[:5] == "layer"
    }
    return {name: torch.tensor(x) for name, x in (tensors | backbone).items()}


def _run(state, tmp_path):
    torch.save({f"module.{name}": x for name, x in state.items()}, tmp_path / "vrp.pt")
    out = tmp_path / "vrp.safetensors"
    flags = ["--checkpoint", str(tmp_path / "vrp.pt"), "--out", str(out)]
    return vrp_sam_to_flax.main(flags), out


def test_learned_part_is_converted(state, tmp_path, capsys):
    status, out = _run(state, tmp_path)
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("ignored 275 tensors layer[0-4]\\..*: the frozen backbone")
    assert lines[2] == "converted 43 arrays, 1,592,064 parameters"
    encoder = weights.load(_build, out, kind="prompt_encoder", architecture="vrp", made_by="")
    held = weights.leaves(encoder)
    reduce = state["downsample_query.0.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(held["features.reduce.kernel"], reduce)
    packed = state[f"{DECODER}cross_attention_layers_0.0.multihead_attn.in_proj_weight"]
    for i, part in enumerate("qkv"):
        kernel = held[f"decoder.support_cross.{part}_proj.kernel"]
        np.testing.assert_array_equal(kernel, packed[256 * i : 256 * (i + 1)].T)
    gain = state[f"{DECODER}self_attention_layers.0.norm.weight"]
    np.testing.assert_array_equal(held["decoder.query_self_norm.scale"], gain)


def test_problems_are_reported(state, tmp_path, capsys):
    name = f"{DECODER}cross_attention_layers.1.norm.bias"
    wrong = state | {name: torch.zeros(256), "merge_1.0.weight": torch.zeros(256, 513, 3, 3)}
    status, out = _run(wrong, tmp_path)
    assert status == 1
    assert not out.exists()
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path / 'vrp.pt'} as distribution.name=vrp: "
        "the checkpoint does not fit the model",
        "  1 paths of another shape: features.merge.kernel (513, 256) from merge_1.0.weight "
        "(256, 513, 3, 3)",
        f"  1 tensors that no rule knows: {name}",
    ]
