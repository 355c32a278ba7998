"""How long a run takes: the operations of its parts, and the rate at which a device does them.

A multiplication and an addition are two operations. Those of SAM's image encoder are of a formula;
all others are XLA's count of the functions that a run compiles, lowered but not compiled, on arrays
without contents. So nothing of this needs weights, data, a GPU or memory.

XLA counts the body of a loop once. The functions are therefore lowered as for a GPU, where all K
samples and all reference positions are one call, and with frozen networks that do nothing, which
are counted by themselves. A CPU skips reference positions outside the annotation and then does
less (`equations_fast.cosine_prior`).

A prediction says what a device that is kept busy would take. It leaves out compilation, reading
pictures and writing checkpoints.
"""

import dataclasses
import functools
import pathlib
import statistics
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import backbone, equations, model, platforms, resize, sharding
from prosam_jax.config import BackboneConfig, Config, DataConfig, EvalConfig, SAMSettings
from prosam_jax.data import datasets, folds
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls, prediction
from prosam_jax.report import curves
from prosam_jax.sam.model import Sam
from prosam_jax.training import state, step
from prosam_jax.types import Episode, Taps
from prosam_jax.weights import files

REACHED = 0.35
"""Share of the rate of large matrix products that a run is taken to reach.

Measured (docs/performance.md): a training step on a CPU 0.38 to 0.41, SAM's encoder in bfloat16 on
an H200 0.31 with cuDNN's attention and 0.24 without. 120 steps of the recipe `shapes`, reading
included, reached 0.35 (0.29 to 0.53 in 8 turns) in CPU seconds on a core shared with other work.
"""

RECENT = 10
"""Lines of the log from which the rate of a run under way is taken."""


class Cost(NamedTuple):
    """Operations of the parts of a run.

    Attributes:
        encoder: SAM's image encoder, for one target.
        backbone: The backbone, for one picture.
        step: What else a training step does for one episode: the prompt encoder and the decoder
            for K samples, forward and backward, and the optimiser.
        validation: What else an episode of a validation takes.
        scoring: What else an episode of the evaluation takes, with the strategies (`eval.samples`)
            and controls (`eval.controls`) that the settings ask for.
    """

    encoder: float
    backbone: float
    step: float
    validation: float
    scoring: float


class Work(NamedTuple):
    """Operations of a run.

    Attributes:
        embeddings: SAM's encoder for every target once, if `cache.dir` is set; else 0, and the
            others have it for every episode. Runs that share a cache share these.
        training: All steps.
        validation: All validations during the training.
        scoring: The evaluation at the end.
    """

    embeddings: float
    training: float
    validation: float
    scoring: float


def operations(cfg: Config) -> Cost:
    """The operations of the parts of a run; what they depend on is counted once in a process."""
    counted = _counted(cfg)
    scored = cfg.eval.samples, cfg.eval.controls
    return Cost(
        encoder=cfg.sam.architecture().encoder_operations(),
        backbone=_backbone(cfg.backbone.name, cfg.data.image_size)[0],
        step=_step(counted),
        validation=_evaluation(counted, 0, False),
        scoring=_evaluation(counted, *scored),
    )


def steps(cfg: Config) -> int:
    """Length of the training in steps.

    Raises:
        UserError: It is given in epochs, and neither are the data there nor is the number of their
            images known.
    """
    return cfg.train.steps or state.total_steps(cfg.train, _images(cfg, "train"))


def work(cfg: Config) -> Work:
    """The operations of a run from its first step to its evaluation.

    Raises:
        UserError: As for `steps`.
    """
    cost, evaluated = operations(cfg), cfg.eval.episodes
    shown = cost.backbone * (1 + cfg.data.shots) + (0 if cfg.cache.dir else cost.encoder)
    wrong = cost.backbone * cfg.data.shots if cfg.eval.controls else 0  # references of the control
    targets = (_images(cfg, "train") + _targets(cfg)) if cfg.cache.dir else 0
    return Work(
        embeddings=targets * cost.encoder,
        training=steps(cfg) * cfg.train.batch_size * (shown + cost.step),
        validation=_validations(cfg) * evaluated * (shown + cost.validation),
        scoring=evaluated * cfg.eval.seeds * (shown + wrong + cost.scoring),
    )


def hours(cfg: Config, rate: float) -> float:
    """Hours that a run takes from its first step to its evaluation.

    Args:
        cfg: Its settings.
        rate: Operations per second that are really reached, as `rate_reached` tells.

    Raises:
        UserError: As for `steps`.
    """
    return sum(work(cfg)) / rate / 3600


def remaining(cfg: Config, workdir: pathlib.Path, rate: float) -> float:
    """Hours that a run still takes, its evaluation included.

    One that is under way is predicted from the episodes per second in its log, from which the rate
    of everything else follows. While such a run fills a cache of SAM's embeddings, the prediction
    is too long.

    Args:
        cfg: The settings of the run.
        workdir: Its folder, which need not be there yet.
        rate: As for `hours`.

    Raises:
        UserError: As for `steps`; or its log is damaged.
    """
    there = (workdir / curves.METRICS).exists()
    lines = [x for x in curves.read(workdir) if "train/episodes_per_s" in x] if there else []
    if not lines:
        return hours(cfg, rate)
    done, total, whole = lines[-1]["step"], steps(cfg), work(cfg)
    an_episode = whole.training / total / cfg.train.batch_size
    rate = an_episode * statistics.median(x["train/episodes_per_s"] for x in lines[-RECENT:])
    left = whole.training * (total - done) / total + whole.scoring
    if validations := _validations(cfg):
        left += whole.validation * _validations(cfg, done) / validations
    return left / rate / 3600


def rate_reached(dtype: str) -> float:
    """Operations per second that a run is taken to reach here, measured in about a second.

    Args:
        dtype: Type of the activations, as of `sam.dtype`.
    """
    size, count = (2048, 1) if jax.default_backend() == "cpu" else (4096, 20)
    product = platforms.matmul(dtype, size, count)
    return REACHED * max(product() for _ in range(5))


def _validations(cfg: Config, done: int = 0) -> int:
    """Validations after step `done` (`training.loop.Trainer.is_due`)."""
    if cfg.train.eval_every < 0:
        return 0
    total = steps(cfg)
    every = cfg.train.eval_every or state.steps_per_epoch(cfg.train, _images(cfg, "train"))
    return -(-total // every) - done // every if done < total else 0


def _targets(cfg: Config) -> int:
    """Pictures that are targets of test episodes, at most."""
    known = _is_there(cfg, "test") or _published(cfg, "test")
    return min(cfg.eval.episodes, _images(cfg, "test")) if known else cfg.eval.episodes


def _images(cfg: Config, split: str) -> int:
    """Pictures of a split: those of the data if they are there, else the published number."""
    if _is_there(cfg, split):
        return _read(dataclasses.replace(cfg.data, annotation="mask", downsample="nearest"), split)
    if images := _published(cfg, split):
        return images
    raise UserError(
        f"data.root={cfg.data.root!r} is not there, and nothing else tells how many images an "
        f"epoch of data.name={cfg.data.name} has: pass --config.train.steps, or the data's folder"
    )


@functools.cache
def _read(cfg: DataConfig, split: str) -> int:
    return len(datasets.episodes(cfg, split, seed=0).fold.images)


def _is_there(cfg: Config, split: str) -> bool:
    if cfg.data.name == "shapes":
        return True
    transferred = split == "test" and cfg.data.test != "own"
    root = cfg.data.test_root if transferred else cfg.data.root
    return bool(root) and pathlib.Path(root).is_dir()


def _published(cfg: Config, split: str) -> int:
    """Pictures of the published list of a split; 0 if there is none."""
    rule = {"pascal": folds.PASCAL_5I, "coco": folds.COCO_20I}.get(cfg.data.name)
    if split == "test" and cfg.data.test != "own":
        rule = folds.COCO_TO_PASCAL[cfg.data.test]
    images, _ = rule.published.get((split, cfg.data.fold), (0, "")) if rule else (0, "")
    return images


def _counted(cfg: Config) -> Config:
    """Settings with all that counts do not depend on at their defaults; what is counted once."""
    distribution = cfg.distribution
    if distribution.name in equations.SAMPLERS:  # all samples in one call, not in a loop
        distribution = dataclasses.replace(distribution, sample_group=distribution.samples)
    return Config(
        data=DataConfig(image_size=cfg.data.image_size, shots=cfg.data.shots),
        sam=SAMSettings(model=cfg.sam.model, image_size=cfg.sam.image_size),
        backbone=BackboneConfig(name=cfg.backbone.name),
        prompt=dataclasses.replace(cfg.prompt, weights=""),
        distribution=distribution,
        eval=EvalConfig(join=cfg.eval.join),
    )


def _operations(function: Any, *arguments: Any) -> float:
    """XLA's count for a jitted function as it is lowered for a GPU."""
    lowered = function.trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.cost_analysis()["flops"]


def _array(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.cache
def _backbone(name: str, size: int) -> tuple[float, Taps]:
    """Operations for a picture of `size` x `size`, and the shapes of its features."""
    cfg = BackboneConfig.of(name=name)
    whole = files.abstract(lambda rngs: cast(Any, backbone.build(cfg, rngs=rngs)))
    graph, weights = nnx.split(whole)

    @jax.jit
    def taps(weights, images):
        network = cast(backbone.Backbone, nnx.merge(graph, weights))
        return backbone.target_taps(network, resize.normalize(images))

    arguments = weights, _array(1, size, size, 3, dtype=jnp.uint8)
    return _operations(taps, *arguments), jax.eval_shape(taps, *arguments)


class _Idle(nnx.Module):
    """A backbone that does nothing, whose features have the shapes of another one's."""

    def __init__(self, taps: Taps):
        self.merged_channels: int = taps.merged.shape[-1]
        self.merged, self.prior = taps.merged.shape[1:], taps.prior.shape[1:]

    def trunk(self, images: Float[Array, "b H W 3"], /) -> tuple[Array, Array]:
        h, w, _ = self.merged
        return jnp.zeros((len(images), *self.merged)), jnp.zeros((len(images), h, w, 1))

    def tail(self, x: Float[Array, "b h w d"], /) -> Array:
        return jnp.zeros((len(x), *self.prior))


@functools.cache
def _parts(cfg: Config) -> model.Parts:
    """The model without contents, and with frozen networks that do nothing to pictures."""
    arch = dataclasses.replace(  # the encoder is not called, because embeddings are given
        cfg.sam.architecture(), embed_dim=8, depth=1, num_heads=1, attention="plain"
    )
    idle = _Idle(_backbone(cfg.backbone.name, cfg.data.image_size)[1])
    build = functools.partial(model.ProSAM, cfg, backbone=idle)
    return model.split(files.abstract(lambda rngs: build(Sam(arch, rngs=rngs), rngs=rngs)))


def _inputs(cfg: Config, references: int) -> tuple[Episode, Any]:
    """An episode, and SAM's embedding of its target."""
    size, arch = cfg.data.image_size, cfg.sam.architecture()
    mask, number = functools.partial(_array, dtype=jnp.bool_), _array(1, dtype=jnp.int32)
    episode = Episode(
        reference_image=_array(1, references, size, size, 3, dtype=jnp.uint8),
        reference_mask=mask(1, references, size, size),
        target_image=_array(1, size, size, 3, dtype=jnp.uint8),
        target_mask=mask(1, size, size),
        target_ignore=mask(1, size, size),
        class_id=number,
        index=number,
        valid=mask(1),
        target_size=_array(1, 2, dtype=jnp.int32),
    )
    return episode, _array(1, *arch.embedding_size, arch.prompt_embed_dim)


@functools.cache
def _step(cfg: Config) -> float:
    graph, params, frozen = _parts(cfg)
    tx = state.optimizer(cfg.train, lambda step: cfg.train.learning_rate)
    train_step = step.make_train_step(graph, tx, cfg.seed, sharding.make_mesh(1))
    before = jax.eval_shape(lambda params: state.create(params, tx), params)
    return _operations(train_step, before, frozen, *_inputs(cfg, cfg.data.shots))


@functools.cache
def _evaluation(cfg: Config, samples: int, controlled: bool) -> float:
    """Operations for one episode, as `runs.score` compiles it."""
    graph, params, frozen = _parts(cfg)
    if not controlled:
        predict = prediction.make_predict_step(graph, samples=samples)
        return _operations(predict, params, frozen, *_inputs(cfg, cfg.data.shots))

    @jax.jit
    def predict_all(fresh, *arguments):
        return controls.make_step(graph, fresh, samples=samples)(*arguments)

    return _operations(predict_all, params, params, frozen, *_inputs(cfg, 2 * cfg.data.shots))
