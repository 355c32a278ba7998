import numpy as np
import pytest
import torch
from conftest import told
from golden_recipe import torch_weights

from prosam_jax import cli, config, model
from prosam_jax.convert import torch_files
from prosam_jax.weights import files, prompt_encoder

DECODER = "transformer_decoder.transformer_"
QUERIES = "transformer_decoder.supp_q_feat.weight"
HEADS = ("mu_head", "transformer_decoder.fc_log_sigma")
LINEAR = {"weight": (256, 256), "bias": (256,)}
PROBABILISTIC = (("--mean-head", "--scale-head"), ("mean", "log_scale"))


def _checkpoint(json_name):
    """VRP-SAM's checkpoint; one number stands for each tensor of the backbone."""
    return {
        name: torch.zeros(()).expand(x.shape) if name.startswith("layer") else torch.from_numpy(x)
        for name, x in torch_weights(json_name).items()
    }


@pytest.fixture(scope="module")
def state():
    return _checkpoint("params_vrp_resnet50")


@pytest.fixture(scope="module")
def learned(state):
    return {name: x for name, x in state.items() if not name.startswith("layer")}


@pytest.fixture(scope="module")
def with_heads(state):
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{head}.{leaf}": shape for head in HEADS for leaf, shape in LINEAR.items()}
    return state | {name: torch.randn(x, generator=generator) for name, x in shapes.items()}


def _run(state, tmp_path, *flags):
    torch.save(state, tmp_path / "vrp.pt")
    out = tmp_path / "vrp.safetensors"
    command = ["--checkpoint", str(tmp_path / "vrp.pt"), "--out", str(out), *flags]
    return cli.main(["weights", "convert", "vrp-sam", *map(str, command)]), out


def _leaves(out):
    """The arrays, read as a run reads them."""
    trained = prompt_encoder.read(out)
    return files.leaves(model.load_prompt_encoder(out, trained.config, trained.merged_channels))


def test_learned_part_is_converted(state, tmp_path, capsys):
    status, out = _run({f"module.{name}": x for name, x in state.items()}, tmp_path)
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    assert "275" in lines[1] and r"layer[0-4]\..*" in lines[1]
    assert "43 arrays" in lines[2] and "1,592,064" in lines[2]
    held = _leaves(out)
    reduce = state["downsample_query.0.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(held["features.reduce.kernel"], reduce)
    packed = state[f"{DECODER}cross_attention_layers_0.0.multihead_attn.in_proj_weight"]
    for i, part in enumerate("qkv"):
        kernel = held[f"decoder.support_cross.{part}_proj.kernel"]
        np.testing.assert_array_equal(kernel, packed[256 * i : 256 * (i + 1)].T)
    gain = state[f"{DECODER}self_attention_layers.0.norm.weight"]
    np.testing.assert_array_equal(held["decoder.query_self_norm.scale"], gain)


def test_the_file_says_what_is_known_and_no_more(state, tmp_path):
    _, out = _run({"state_dict": state}, tmp_path, "--sam", "vit_b")
    trained = prompt_encoder.read(out)
    assert trained.config == config.replaced(
        config.Config(), {"distribution.name": "vrp", "sam.model": "vit_b"}
    )
    unknown = (trained.benchmark, trained.fold, trained.step, trained.results)
    assert unknown == (None, None, None, None)
    assert trained.frozen == {
        "sam": {"architecture": "vit_b", "arrays_sha256": None},
        "backbone": {"architecture": "resnet50", "arrays_sha256": None},
    }
    assert trained.source_name == "vrp.pt"
    assert trained.source_sha256 == torch_files.sha256(tmp_path / "vrp.pt")


def _resnet101(state):
    block = {name: x for name, x in state.items() if name.startswith("layer3.5.")}
    return state | {
        name.replace("layer3.5.", f"layer3.{i}."): x
        for i in range(6, 23)
        for name, x in block.items()
    }


@pytest.mark.slow
def test_resnet101_is_recognised(state, tmp_path):
    status, out = _run(_resnet101(state), tmp_path)
    assert status == 0
    assert prompt_encoder.read(out).config.backbone.name == "resnet101"


def test_vgg_is_recognised(tmp_path):
    state = _checkpoint("params_vrp_vgg16")
    status, out = _run({"model": state}, tmp_path)
    assert status == 0
    trained = prompt_encoder.read(out)
    assert (trained.config.backbone.name, trained.merged_channels) == ("vgg16_bn", 768)
    reduce = state["downsample_query.0.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(_leaves(out)["features.reduce.kernel"], reduce)


@pytest.mark.slow
def test_a_backbone_that_is_not_there_is_named_and_the_prompts_are_counted(learned, tmp_path):
    fewer = learned | {QUERIES: learned[QUERIES][:7].clone()}
    status, out = _run(fewer, tmp_path, "--backbone", "dinov2_vitb14")
    assert status == 0
    cfg = prompt_encoder.read(out).config
    assert (cfg.backbone.name, cfg.prompt.num_queries) == ("dinov2_vitb14", 7)
    assert _leaves(out)["decoder.queries"].shape == (7, 256)


@pytest.mark.parametrize(
    ("distribution", "flags", "leaves"),
    [
        ("student_t", *PROBABILISTIC),
        pytest.param("gaussian", *PROBABILISTIC, marks=pytest.mark.slow),
        pytest.param("t3vae", *PROBABILISTIC, marks=pytest.mark.slow),
        ("vrp_2linear", ("--linear1", "--linear2"), ("linear1", "linear2")),
    ],
)
def test_heads_are_converted(with_heads, tmp_path, distribution, flags, leaves):
    named = [x for pair in zip(flags, HEADS, strict=True) for x in pair]
    status, out = _run(with_heads, tmp_path, "--distribution", distribution, *named)
    assert status == 0
    held = _leaves(out)
    for leaf, module in zip(leaves, HEADS, strict=True):
        np.testing.assert_array_equal(held[f"head.{leaf}.kernel"], with_heads[f"{module}.weight"].T)
        np.testing.assert_array_equal(held[f"head.{leaf}.bias"], with_heads[f"{module}.bias"])
    assert prompt_encoder.read(out).config.distribution.name == distribution


@pytest.mark.parametrize(
    ("which", "flags", "words"),
    [
        (
            "with_heads",
            [],
            ("mu_head", "transformer_decoder.fc_log_sigma", "--distribution student_t"),
        ),
        (
            "with_heads",
            ["--distribution", "student_t", "--mean-head", "mu_head"],
            ("transformer_decoder.fc_log_sigma", "--distribution"),
        ),
        (
            "state",
            ["--distribution", "student_t"],
            ("--distribution student_t", "--mean-head", "--scale-head"),
        ),
        (
            "with_heads",
            ["--mean-head", HEADS[0], "--scale-head", HEADS[1]],
            ("--distribution vrp",),
        ),
        (
            "state",
            ["--distribution", "vrp_2linear", "--linear1", "mu", "--linear2", "sigma"],
            ("--linear1='mu'",),
        ),
        ("state", ["--distribution", "student"], ("--distribution='student'", "student_t")),
        ("state", ["--sam", "vit_x"], ("--sam='vit_x'", "vit_l")),
        ("learned", [], ("vrp.pt", "--backbone")),
        ("learned", ["--backbone", "resnet"], ("--backbone='resnet'", "resnet50")),
        (
            "learned",
            ["--backbone", "vgg16_bn"],
            ("(256, 1536, 1, 1)", "vgg16_bn", "768", "--backbone"),
        ),
        (
            "state",
            ["--backbone", "vgg16_bn"],
            ("resnet50", "vgg16_bn", "--backbone"),
        ),
    ],
)
def test_mistakes_get_one_line(request, tmp_path, capsys, which, flags, words):
    status, out = _run(request.getfixturevalue(which), tmp_path, *flags)
    assert status == 1
    assert not out.exists()
    told(capsys.readouterr().err, *words)


def test_another_width_is_refused(learned, tmp_path, capsys):
    status, _ = _run(learned | {QUERIES: torch.zeros(50, 128)}, tmp_path, "--backbone", "resnet50")
    assert status == 1
    told(capsys.readouterr().err, "prompt.dim=128", "256")


def test_problems_are_reported(state, tmp_path, capsys):
    name = f"{DECODER}cross_attention_layers.1.norm.bias"
    wrong = state | {name: torch.zeros(256), "merge_1.0.weight": torch.zeros(256, 513, 3, 3)}
    status, out = _run(wrong, tmp_path)
    assert status == 1
    assert not out.exists()
    told(
        capsys.readouterr().err,
        tmp_path / "vrp.pt",
        "distribution.name=vrp",
        "features.merge.kernel (513, 256)",
        "merge_1.0.weight (256, 513, 3, 3)",
        name,
    )
