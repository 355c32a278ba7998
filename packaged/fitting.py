"""Shared by the training scripts of the packaged networks: loop, log and weight file."""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

import prosam_jax
from packaged.training_pictures import CLASSES, LIKENESS, SEED, Pictures, pictures
from prosam_jax.weights import files
from prosam_jax.weights.checkpoint import Checkpoints


class State(NamedTuple):
    """All that a checkpoint holds: the network, the optimiser's moments and the steps taken."""

    network: nnx.State
    opt_state: optax.OptState
    step: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training run as the command line describes it.

    Attributes:
        out: The weight file.
        workdir: Where checkpoints and rendered pictures go.
        steps: Steps of the whole run.
        batch_size: Pictures per step.
        count: Number of different pictures, before they are `augmented`.
        learning_rate: Peak of the cosine.
        checkpoint_every: Steps between two checkpoints.
        seed: Seed of the initial weights, batches and prompts.
    """

    MEANT: ClassVar = ("steps", "batch_size", "count", "learning_rate", "seed")

    out: pathlib.Path
    workdir: pathlib.Path
    steps: int
    batch_size: int
    count: int
    learning_rate: float
    checkpoint_every: int = 500
    seed: int = 0


class Batch(NamedTuple):
    """The pictures of a step, and others that show the same classes.

    Attributes:
        images: RGB in 0-255: the pictures, followed `references` times by another picture for
            each.
        objects: As in `training_pictures.Pictures`.
        classes: As there.
        wanted: For each of the other pictures, the class that it shares with its picture.
    """

    images: Float[Array, "b n n 3"]
    objects: UInt8[Array, "b n n"]
    classes: Int32[Array, "b o"]
    wanted: Int32[Array, " r"]


def parse(default: Settings) -> Settings:
    """Reads the command line; every setting has a flag of its name."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Settings):
        value = getattr(default, field.name)
        kind = pathlib.Path if isinstance(value, pathlib.Path) else type(value)
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=value)
    return Settings(**vars(parser.parse_args()))


def optimizer(cfg: Settings) -> optax.GradientTransformation:
    """Adam with a short warm-up and one cosine to zero; gradients are clipped.

    It works on one long vector: compiling its formulas for each array takes a minute.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, cfg.learning_rate, min(100, cfg.steps // 10), cfg.steps
    )
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98)))


def fit(
    cfg: Settings,
    network: nnx.Module,
    loss: Callable[[Any, Any, PRNGKeyArray], tuple[Array, dict[str, Array]]],
    name: str = "",
    references: int = 0,
) -> Any:
    """Trains the parameters (`nnx.Param`) of `network`, from the latest checkpoint if there is one.

    Args:
        cfg: The run.
        network: With fresh weights.
        loss: (network, batch, key) -> (loss, values to log), for an `augmented` `Batch`. It may
            change statistics of the network.
        name: Folder in `cfg.workdir` for the checkpoints, if it holds several runs.
        references: Number of other pictures for each picture of a batch.

    Returns:
        The trained network.

    Raises:
        UserError: The folder holds a run with other settings.
    """
    data = pictures(cfg.count, cfg.workdir)
    graph, initial = nnx.split(network)
    tx = optimizer(cfg)
    key = jax.random.key(cfg.seed)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, batch):
        step_key = jax.random.fold_in(key, state.step)
        augment_key, loss_key = jax.random.split(step_key)
        batch = Batch(*augmented(augment_key, *batch[:3]), batch.wanted)
        model = nnx.merge(graph, state.network)
        structure, params, rest = nnx.split(model, nnx.Param, ...)

        def objective(params):
            model = nnx.merge(structure, params, rest, copy=True)
            value, logs = loss(model, batch, loss_key)
            return value, (logs, nnx.split(model, nnx.Param, ...)[2])

        (value, (logs, rest)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params: Any = optax.apply_updates(params, updates)
        return State(nnx.merge_state(params, rest), opt_state, state.step + 1), logs | {
            "loss": value
        }

    state = State(initial, tx.init(nnx.filter_state(initial, nnx.Param)), jnp.zeros((), jnp.int32))
    checkpoints = Checkpoints(cfg.workdir / name)
    _check_settings(cfg, cfg.workdir / name / "settings.json", checkpoints.latest)
    if checkpoints.latest:
        state = checkpoints.restore(checkpoints.latest, state)
    start, began, window = int(state.step), time.monotonic(), []
    print(f"step {start} of {cfg.steps}, {cfg.batch_size} of {cfg.count} pictures", flush=True)
    for step in range(start, cfg.steps):
        state, logs = train_step(state, draw_batch(data, cfg, step, references))
        window.append(logs)
        if (step + 1) % 50 == 0 or step + 1 == cfg.steps:
            _log(step + 1, window, (step + 1 - start) / (time.monotonic() - began))
            window = []
        if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
            checkpoints.save(step + 1, state)
    return nnx.merge(graph, state.network)


def _check_settings(cfg: Settings, file: pathlib.Path, latest: int | None) -> None:
    ours = {name: getattr(cfg, name) for name in Settings.MEANT}
    if latest is None:
        file.write_text(json.dumps(ours) + "\n")
    held = json.loads(file.read_text()) if file.is_file() else "unknown ones"
    if held != ours:
        raise ValueError(f"{file.parent} holds a run with {held}, not {ours}: take another folder")


def draw_batch(data: Pictures, cfg: Settings, step: int, references: int) -> Batch:
    """The batch of a step; it depends only on the run's seed and the step."""
    generator = np.random.default_rng([cfg.seed, step])
    chosen = generator.integers(cfg.count, size=cfg.batch_size)
    shown = [np.unique(x[x > 0]) for x in data.classes[chosen]]
    wanted = np.array([generator.choice(x, references, replace=False) for x in shown]).T.ravel()
    showing = (np.nonzero((data.classes == c).any(1))[0] for c in wanted)
    own = np.tile(chosen, references)
    others = [generator.choice(x[x != i]) for x, i in zip(showing, own, strict=True)]
    arrays: tuple[Any, ...] = (*(x[[*chosen, *others]] for x in data), wanted)
    return Batch(*arrays)


def _log(step: int, window: list[dict[str, Array]], rate: float) -> None:
    mean = {name: np.mean([logs[name] for logs in window]) for name in window[0]}
    values = "  ".join(f"{name} {value:.4f}" for name, value in mean.items())
    print(f"step {step}  {values}  {rate:.2f} steps/s", flush=True)


def augmented(
    key: PRNGKeyArray,
    images: UInt8[Array, "b n n 3"],
    objects: UInt8[Array, "b n n"],
    classes: Int32[Array, "b o"],
) -> tuple[Float[Array, "b n n 3"], UInt8[Array, "b n n"], Int32[Array, "b o"]]:
    """Pictures mirrored, turned and made darker or brighter, each at random."""
    b = len(images)
    turn_key, gain_key = jax.random.split(key)
    both = jnp.concatenate([images, objects[..., None]], axis=-1)
    flips = jax.random.bernoulli(turn_key, shape=(3, b, 1, 1, 1))
    both = jnp.where(flips[0], both[:, ::-1], both)
    both = jnp.where(flips[1], both[:, :, ::-1], both)
    both = jnp.where(flips[2], both.swapaxes(1, 2), both)
    gain = jax.random.uniform(gain_key, (b, 1, 1, 1), minval=0.8, maxval=1.1)
    return jnp.minimum(both[..., :3] * gain, 255.0), both[..., 3], classes


def write(
    cfg: Settings, network: nnx.Module, *, kind: str, script: str, scores: dict[str, float]
) -> None:
    """Writes the weight file with its provenance: script, settings, data and scores."""
    numbers = {name: f"{value:.4f}" for name, value in scores.items()}
    print("\n".join(f"{name}: {value}" for name, value in numbers.items()), flush=True)
    metadata = {
        "kind": kind,
        "architecture": "shapes",
        "script": script,
        "settings": " ".join(f"{name}={getattr(cfg, name)}" for name in Settings.MEANT),
        "data": f"{cfg.count} generated pictures of {CLASSES} random outlines (seed {SEED}), none "
        f"like one of Shapes-5i (IoU below {LIKENESS} at any place and angle)",
        "version": prosam_jax.__version__,
        "scores": " ".join(f"{name}={value}" for name, value in numbers.items()),
    }
    arrays = {name: np.asarray(x) for name, x in files.leaves(network).items()}
    files.save(cfg.out, arrays, metadata)
