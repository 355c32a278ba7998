"""What runs on a GPU is lowered for CUDA on any machine: no operation is missing there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from prosam_jax import model, segmenter, sharding
from prosam_jax.config import Config, SAMConfig, SAMSettings
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls
from prosam_jax.evaluation.prediction import make_predict_step
from prosam_jax.inference import References, Targets
from prosam_jax.sam.build_sam import build_sam
from prosam_jax.sam.image_encoder import ImageEncoderViT
from prosam_jax.training import state, step
from prosam_jax.types import Episode
from prosam_jax.weights import files

pytestmark = pytest.mark.slow

SIDE = 64


def lowered(function, *arguments) -> str:
    """The module of a jitted function for CUDA, as text."""
    exported = jax.export.export(function, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    return exported.mlir_module()


def config(dtype: str, name: str = "student_t") -> Config:
    changes = {
        "data": {"image_size": SIDE},
        "sam": {"model": "tiny", "weights": "random", "image_size": SIDE, "dtype": dtype},
        "backbone": {"name": "tiny", "weights": "random"},
        "prompt": {"num_queries": 3},
        "distribution": {"name": name},
    }
    return Config.from_dict(changes)


@functools.cache
def parts(dtype: str, name: str = "student_t") -> model.Parts:
    return model.split(model.build(config(dtype, name)))


def episode(shots: int = 1) -> Episode:
    def spec(*shape, dtype=jnp.uint8):
        return jax.ShapeDtypeStruct(shape, dtype)

    return Episode(
        reference_image=spec(2, shots, SIDE, SIDE, 3),
        reference_mask=spec(2, shots, SIDE, SIDE, dtype=jnp.bool_),
        target_image=spec(2, SIDE, SIDE, 3),
        target_mask=spec(2, SIDE, SIDE, dtype=jnp.bool_),
        target_ignore=spec(2, SIDE, SIDE, dtype=jnp.bool_),
        class_id=spec(2, dtype=jnp.int32),
        index=spec(2, dtype=jnp.int32),
        valid=spec(2, dtype=jnp.bool_),
        target_size=spec(2, 2, dtype=jnp.int32),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["vrp", "gaussian", "student_t", "t3vae"])
def test_a_training_step(dtype, name):
    cfg, (graph, params, frozen) = config(dtype, name), parts(dtype, name)
    tx = state.optimizer(cfg.train, state.schedule(cfg.train, images=10))
    train = step.make_train_step(graph, tx, 0, sharding.make_mesh(2, jax.devices()[:1]))
    text = lowered(train, state.create(params, tx), frozen, episode())
    assert ("bf16" in text) == (dtype == "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictions_with_and_without_controls(dtype):
    graph, params, frozen = parts(dtype)
    lowered(make_predict_step(graph), params, frozen, episode(5))
    fresh = controls.untrained(config(dtype), nnx.merge(*parts(dtype)).backbone.merged_channels)
    controlled = controls.make_step(graph, fresh, samples=2)
    lowered(jax.jit(controlled), params, frozen, episode(2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", ["vit_b", "vit_h"])
def test_the_published_encoders(size, dtype):
    cfg = SAMConfig.named(size)
    cfg = type(cfg)(**{**cfg.__dict__, "dtype": dtype})
    graph, weights = nnx.split(files.abstract(lambda rngs: ImageEncoderViT(cfg, rngs=rngs)))
    image = jax.ShapeDtypeStruct((1, *cfg.image_size, 3), jnp.float32)
    lowered(jax.jit(lambda w, x: nnx.merge(graph, w)(x)), weights, image)


def test_the_segmenters_functions():
    # Private, but what `Segmenter` compiles; its methods run at once.
    prosam = nnx.merge(*parts("float32"))
    leaves, tree = jax.tree.flatten(prosam)
    images = jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8)
    targets = jax.eval_shape(lambda: Targets(*prosam.encode_targets(images)))
    cells = targets.taps.merged.shape[1:3]
    annotated = jnp.ones((2, SIDE, SIDE), bool)

    def bound(function, **static):
        return jax.jit(functools.partial(function, tree, **static))

    lowered(bound(segmenter._encode_targets), leaves, images)
    encode = functools.partial(segmenter._encode_reference, tree, size=cells, downsample="coverage")
    lowered(jax.jit(encode), leaves, images, annotated)
    references = jax.eval_shape(
        lambda: References(*prosam.encode_references(images, annotated, cells))
    )
    lowered(bound(segmenter._predict, side=SIDE), leaves, targets, references)


@pytest.fixture
def hopper(monkeypatch):
    """What JAX asks of the card when it lowers cuDNN's attention, answered as Hopper would."""
    asks = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    for name, answer in (
        ("check_cudnn_version", lambda: 91000),
        ("check_compute_capability", lambda capability: float(capability) <= 9.0),
    ):
        if not hasattr(asks, name):
            pytest.skip(f"this JAX has no {name}")
        monkeypatch.setattr(asks, name, answer)


@pytest.mark.parametrize("size", ["vit_b", "vit_h"])
def test_fused_attention_is_one_call_of_cudnn_in_each_block(size, hopper):
    cfg = dataclasses.replace(SAMConfig.named(size), dtype="bfloat16", attention="cudnn")
    graph, weights = nnx.split(files.abstract(lambda rngs: ImageEncoderViT(cfg, rngs=rngs)))
    image = jax.ShapeDtypeStruct((1, *cfg.image_size, 3), jnp.float32)
    exported = jax.export.export(
        jax.jit(lambda w, x: nnx.merge(graph, w)(x)),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")],
    )(weights, image)
    assert exported.mlir_module().count("custom_call @__cudnn$fmhaSoftmax") == cfg.depth


def test_fused_attention_is_refused_where_it_would_run_without_a_gpu():
    fused = SAMSettings(model="tiny", weights="random", dtype="bfloat16", attention="cudnn")
    cfg = fused.architecture()
    files.abstract(lambda rngs: ImageEncoderViT(cfg, rngs=rngs))  # may be built anywhere
    with pytest.raises(UserError) as error:
        build_sam(fused)
    assert "sam.attention" in str(error.value)
