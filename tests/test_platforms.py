"""What is chosen by platform, when it is lowered for one."""

import functools
import types

import jax
import jax.numpy as jnp
import pytest

from prosam_jax import equations_fast, platforms


def module(function, platform, *arguments):
    return jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()


def test_the_choice_follows_the_platform_that_it_is_lowered_for():
    def scaled(x, *, by):
        return x * by

    limits = {"cpu": 3.0, "default": 5.0}
    call = functools.partial(platforms.by_platform, scaled, by=limits)
    assert float(call(jnp.float32(2))) == 6
    for_cpu, for_cuda = (module(call, x, jnp.float32(2)) for x in ("cpu", "cuda"))
    assert "dense<3.0" in for_cpu and "dense<5.0" not in for_cpu
    assert "dense<5.0" in for_cuda and "dense<3.0" not in for_cuda


def test_the_prior_on_a_gpu_is_products_without_decisions():
    maps = jnp.ones((1, 4, 5, 8))
    weight = jnp.ones((1, 4, 5))
    for_cpu, for_cuda = (
        module(equations_fast.cosine_prior, x, maps, maps, weight) for x in ("cpu", "cuda")
    )
    for operation in ("stablehlo.while", "stablehlo.sort"):
        assert operation in for_cpu, operation
        assert operation not in for_cuda, operation


def test_samples_are_decoded_together_off_a_cpu(monkeypatch):
    assert [platforms.samples_at_once(k) for k in (1, 10)] == [1, 2]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [platforms.samples_at_once(k) for k in (1, 10)] == [1, 10]


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "has"),
    [
        ("gpu", "9.0", "bfloat16", True),
        ("gpu", "10.0", "float16", True),
        ("gpu", "9.0", "float32", False),
        ("gpu", "8.0", "bfloat16", False),
        ("gpu", "gfx942", "bfloat16", False),
        ("cpu", "", "bfloat16", False),
    ],
)
def test_fused_attention_needs_hopper_and_half_precision(
    monkeypatch, backend, capability, dtype, has
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert platforms.has_fused_attention(dtype) is has
