import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import told
from flax import nnx

from prosam_jax import layers
from prosam_jax.convert import engine
from prosam_jax.convert.engine import Ignored, Rule
from prosam_jax.errors import UserError
from prosam_jax.weights import files


def _draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _spec(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def _filled(build, torch_module, rules):
    source = {name: x.detach().numpy() for name, x in torch_module.state_dict().items()}
    module = files.abstract(build)
    arrays = engine.convert(source, rules, (), files.leaves(module))
    return files.fill(module, arrays.__getitem__)


BIAS = Rule("bias", "bias")


@pytest.mark.parametrize("seed", [0, 1])
def test_linear_matches_torch(seed):
    torch.manual_seed(seed)
    oracle = torch.nn.Linear(3, 5)
    rules = [Rule("weight", "kernel", engine.linear), BIAS]
    module = _filled(lambda rngs: nnx.Linear(3, 5, rngs=rngs), oracle, rules)
    x = _draw(2, 3, seed=seed)
    expected = oracle(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(module(jnp.asarray(x)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_conv_matches_torch(seed):
    torch.manual_seed(seed)
    oracle = torch.nn.Conv2d(3, 5, (2, 4))
    rules = [Rule("weight", "kernel", engine.conv), BIAS]

    def build(rngs):
        return nnx.Conv(3, 5, (2, 4), padding="VALID", rngs=rngs)

    x = _draw(2, 6, 7, 3, seed=seed)
    expected = oracle(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    y = np.asarray(_filled(build, oracle, rules)(jnp.asarray(x)))
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_conv_transpose_matches_torch(seed):
    torch.manual_seed(seed)
    oracle = torch.nn.ConvTranspose2d(3, 5, 2, stride=2)
    rules = [Rule("weight", "kernel", engine.conv_transpose), BIAS]

    def build(rngs):
        return layers.ConvTranspose2x2(3, 5, dtype=np.float32, rngs=rngs)

    x = _draw(2, 4, 7, 3, seed=seed)
    expected = oracle(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    y = np.asarray(_filled(build, oracle, rules)(jnp.asarray(x)))
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, rtol=0, atol=1e-6)


def test_pointwise_convolution_becomes_linear():
    oracle = torch.nn.Conv2d(3, 5, 1, bias=False)
    rules = [Rule("weight", "kernel", engine.pointwise)]

    def build(rngs):
        return nnx.Linear(3, 5, use_bias=False, rngs=rngs)

    x = _draw(2, 4, 7, 3)
    expected = oracle(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    y = np.asarray(_filled(build, oracle, rules)(jnp.asarray(x)))
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_packed_projections_are_split_as_in_torchs_attention(seed):
    torch.manual_seed(seed)
    oracle = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    torch.nn.init.normal_(oracle.in_proj_bias)
    torch.nn.init.normal_(oracle.out_proj.bias)
    kernels = tuple(f"{x}_proj.kernel" for x in "qkv")
    rules = [
        Rule("in_proj_weight", kernels, engine.linear),
        Rule("in_proj_bias", tuple(f"{x}_proj.bias" for x in "qkv")),
        Rule(r"(out_proj)\.weight", r"\1.kernel", engine.linear),
        Rule(r"(out_proj)\.bias", r"\1.bias"),
    ]

    def build(rngs):
        return layers.Attention(12, 3, dtype=np.float32, rngs=rngs)

    q, k, v = _draw(2, 4, 12, seed=seed), _draw(2, 7, 12, seed=seed + 9), _draw(2, 7, 12, seed=5)
    expected = oracle(*map(torch.tensor, (q, k, v)))[0].detach().numpy()
    y = _filled(build, oracle, rules)(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def test_arrays_are_views_of_the_source():
    source = {"weight": _draw(3, 5)}
    arrays = engine.convert(
        source, [Rule("weight", "kernel", engine.linear)], (), {"kernel": _spec(5, 3)}
    )
    assert np.shares_memory(arrays["kernel"], source["weight"])


PROBLEMS = {
    "unknown tensor": (
        {"b": _draw(2), "c.d": _draw(2)},
        [BIAS, Rule("b", "bias")],
        {"bias": _spec(2)},
        ("no rule", "c.d"),
    ),
    "two rules": (
        {"bias": _draw(2)},
        [BIAS, Rule("b.*", "bias")],
        {"bias": _spec(2)},
        ("several rules: bias", "unfilled: bias"),
    ),
    "filled twice": (
        {"a": _draw(2), "b": _draw(2)},
        [Rule("[ab]", "bias")],
        {"bias": _spec(2)},
        ("twice: bias",),
    ),
    "unknown path": (
        {"bias": _draw(2), "a": _draw(2)},
        [BIAS, Rule("a", "scale")],
        {"bias": _spec(2)},
        ("not have: scale", "from a"),
    ),
    "unfilled path": (
        {"bias": _draw(2)},
        [BIAS],
        {"bias": _spec(2), "kernel": _spec(2)},
        ("unfilled: kernel",),
    ),
    "another shape": (
        {"weight": _draw(3, 5)},
        [Rule("weight", "kernel", engine.linear)],
        {"kernel": _spec(3, 5)},
        ("shape: kernel (3, 5)", "weight (5, 3)"),
    ),
    "more axes than the rule takes": (
        {"weight": _draw(3, 5, 1, 2)},
        [Rule("weight", "kernel", engine.linear)],
        {"kernel": _spec(5, 3)},
        ("shape: kernel (5, 3)", "weight (3, 5, 1, 2)"),
    ),
    "not divisible": (
        {"weight": _draw(4)},
        [Rule("weight", ("q", "k", "v"))],
        {"q": _spec(2), "k": _spec(1), "v": _spec(1)},
        ("3", "shape", "q (2,)", "k (1,)", "v (1,)", "weight (4,)"),
    ),
    "no axes": (
        {"bias": np.array(1, np.float32)},
        [BIAS],
        {"bias": _spec(1)},
        ("shape: bias (1,)", "bias ()"),
    ),
    "another type": (
        {"bias": np.zeros(2)},
        [BIAS],
        {"bias": _spec(2)},
        ("bias", "float64", "float32"),
    ),
    "nan": (
        {"bias": np.array([1, np.nan], np.float32)},
        [BIAS],
        {"bias": _spec(2)},
        ("NaN", "bias"),
    ),
    "infinity": (
        {"bias": np.array([-np.inf, 1], np.float32)},
        [BIAS],
        {"bias": _spec(2)},
        ("NaN", "bias"),
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_is_named(case):
    source, rules, specs, expected = PROBLEMS[case]
    with pytest.raises(UserError) as error:
        engine.convert(source, rules, (), specs)
    assert all(words in str(error.value) for words in expected), error.value


def test_all_problems_come_in_one_message():
    source = {f"x.{i}": _draw(2) for i in range(11)} | {"bias": np.full(3, np.nan, np.float32)}
    with pytest.raises(UserError) as error:
        engine.convert(source, [BIAS], (), {"bias": _spec(2), "kernel": _spec(2)})
    told(
        error,
        "the checkpoint does not fit the model: 11 tensors that no rule knows: x.0, x.1, ",
        " and 3 more; ",
        "bias (2,) from bias (3,); 1 tensors with NaN or infinity: bias; ",
        "; 1 paths left unfilled: kernel",
    )


def test_ignored_tensors_are_left_out_by_whole_names():
    ignored = [Ignored(r"fc\.bias", "the classifier")]
    source = {"bias": _draw(2), "fc.bias": _draw(9).astype(np.int64)}
    specs = {"bias": _spec(2)}
    assert engine.convert(source, [BIAS], ignored, specs).keys() == {"bias"}
    with pytest.raises(UserError, match=r"fc\.bias2"):
        engine.convert(source | {"fc.bias2": _draw(2)}, [BIAS], ignored, specs)
