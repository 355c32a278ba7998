"""The runs that `studies.flatness` asks: their test episodes and mean prompts."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Shaped

from prosam_jax import equations
from prosam_jax.config import Config, replaced
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate
from prosam_jax.model import ProSAM, build, load
from prosam_jax.types import Features, Posterior
from prosam_jax.weights import pretrained, prompt_encoder
from studies.flatness_measures import Case

METHODS = {
    "vrp": "VRP-SAM",
    "vrp_2linear": "VRP-SAM, two linear layers",
    "gaussian": "ProSAM, Gaussian",
    "student_t": "ProSAM, Student-t",
}
CONTROL = "untrained"
BATCH = 20


class Run(NamedTuple):
    """A finished run."""

    workdir: pathlib.Path
    cfg: Config


class Fold(NamedTuple):
    """Runs of all `METHODS` on one fold, for the seeds that every method has."""

    number: int
    seeds: tuple[int, ...]
    runs: Mapping[str, tuple[Run, ...]]


class Encoded(NamedTuple):
    """Test episodes of a fold through the frozen networks, which all its runs share."""

    features: Sequence[Features]
    truth: Shaped[np.ndarray, "n h w"]
    ignore: Shaped[np.ndarray, "n h w"]
    class_id: Integer[np.ndarray, " n"]
    target: Shaped[np.ndarray, " n"]


def finished(folder: pathlib.Path, annotation: str = "mask") -> list[Fold]:
    """The folds of a folder of runs, with the seeds that all methods have.

    Raises:
        UserError: There is no fold and seed with all methods, or runs have other frozen weights.
    """
    found: dict[tuple[int, int], dict[str, Run]] = {}
    frozen = None
    for path in sorted(folder.glob("*/results.json")):
        cfg = pretrained.settings_of(path.parent)
        if cfg.data.annotation != annotation or cfg.distribution.name not in METHODS:
            continue
        if not path.parent.name.endswith(f"{cfg.distribution.name}-seed{cfg.seed}"):
            continue  # a variant of the method, from another table
        here = prompt_encoder.read_frozen(path.parent)
        frozen = frozen or here
        if here != frozen:
            raise UserError(
                f"{path.parent} was trained on other frozen weights than the runs before it; give "
                "a folder whose runs share theirs"
            )
        found.setdefault((cfg.data.fold, cfg.seed), {})[cfg.distribution.name] = Run(
            path.parent, cfg
        )
    whole = {at: runs for at, runs in sorted(found.items()) if len(runs) == len(METHODS)}
    if not whole:
        raise UserError(
            f"{folder} has no fold and seed with finished runs of {', '.join(METHODS)}: run "
            f"prosam reproduce --table methods --workdir={folder}"
        )
    folds = []
    for number in sorted({fold for fold, _ in whole}):
        seeds = tuple(seed for fold, seed in whole if fold == number)
        runs = {m: tuple(whole[number, seed][m] for seed in seeds) for m in METHODS}
        folds.append(Fold(number, seeds, runs))
    return folds


def encoded(decoder: ProSAM, cfg: Config, episodes: int) -> Encoded:
    """The first test episodes of the fold of `cfg`."""
    source = evaluate.test_episodes(replaced(cfg, {"eval.episodes": episodes}))
    encode = jax.jit(lambda model, episode: model.encode(episode))
    batches = list(make_loader(source, batch_size=BATCH))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(x, name)[x.valid] for x in batches])

    return Encoded(
        [encode(decoder, x) for x in batches],
        joined("target_mask"),
        joined("target_ignore"),
        joined("class_id"),
        np.array([source.spec(i).target_id for i in range(len(source))]),
    )


def opened(run: Run, *, trained: bool = True) -> ProSAM:
    """A run's model, or one of its settings and seed before training."""
    return load(run.workdir, {})[0] if trained else build(run.cfg)


_posterior = jax.jit(lambda model, features: model.posterior(features))


def cases(model: ProSAM, episodes: Encoded, count: int) -> Iterator[tuple[Case, Array | None]]:
    """The first episodes with a model's mean prompts, and sigma (q, c) in units of their rms."""
    done = 0
    for features in episodes.features:
        if done >= count:
            return
        posterior: Posterior = jax.device_get(_posterior(model, features))
        for i, mean in enumerate(posterior.mean):
            if done >= min(count, len(episodes.truth)):
                return
            case = Case(
                features.image_embeddings[i],
                jnp.asarray(episodes.truth[done]),
                jnp.asarray(episodes.ignore[done]),
                jnp.asarray(mean),
            )
            sigma = None
            if posterior.log_scale is not None:
                sigma = equations.scale(jnp.asarray(posterior.log_scale[i])) / case.rms
            yield case, sigma
            done += 1
