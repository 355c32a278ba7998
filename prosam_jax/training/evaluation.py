"""The one evaluation, for validation in training and for `evaluate.py`."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool

from prosam_jax.config import Config
from prosam_jax.data import benchmark
from prosam_jax.data.episodes import EpisodeSource, episode_list_digest
from prosam_jax.data.loader import make_loader
from prosam_jax.training.metrics import Areas, IoU, Scores
from prosam_jax.training.sharding import split_batch
from prosam_jax.training.step import Prediction
from prosam_jax.types import Episode


class Example(NamedTuple):
    """An episode (no batch axis), its class and the mask predicted for it."""

    episode: Episode
    class_name: str
    prediction: Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of an evaluation.

    Attributes:
        scores: The metrics.
        classes: Names of the fold's test classes, those without an episode too.
        episodes: How many were scored.
        digest: SHA-256 of the list of episodes (`data.episodes.episode_list_digest`).
        seconds: Wall time, compilation included.
        examples: The first episodes, for pictures.
        references: How many references were shown.
        cueless: Of how many of them no mark was left at the size of the features.
    """

    scores: Scores
    classes: dict[int, str]
    episodes: int
    digest: str
    seconds: float
    examples: list[Example]
    references: int
    cueless: int


def test_episodes(cfg: Config) -> EpisodeSource:
    """The fixed list of episodes of novel classes that every result of a fold stands on."""
    return benchmark.episodes(cfg.data, "test", seed=cfg.eval.seed, length=cfg.eval.episodes)


def evaluate(
    predict: Callable[[nnx.State, nnx.State, Episode], Prediction],
    params: nnx.State,
    frozen: nnx.State,
    source: EpisodeSource,
    *,
    batch_size: int,
    mesh: Mesh,
    workers: int = 0,
    examples: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Result:
    """Scores the mean prompts on every episode of `source`.

    Args:
        predict: Compiled by `step.make_predict_step`.
        params: The prompt encoder's parameters.
        frozen: SAM and the backbone.
        source: The fixed list of episodes.
        batch_size: Episodes decoded at once, rounded up to a multiple of the mesh's devices.
        mesh: Devices that share a batch.
        workers: Processes that read.
        examples: How many of the first episodes to keep.
        on_batch: Called with the number of episodes done so far.
    """
    start = time.monotonic()
    iou, kept, done, references, cueless = IoU(), [], 0, 0, 0
    batch_size = -(-batch_size // mesh.size) * mesh.size
    with contextlib.closing(make_loader(source, batch_size=batch_size, workers=workers)) as loader:
        for episode in loader:
            found = jax.device_get(predict(params, frozen, split_batch(episode, mesh)))
            valid = episode.valid
            iou.add(Areas(*(x[valid] for x in found.areas)), episode.class_id[valid])
            done += int(valid.sum())
            references += found.cueless[valid].size
            cueless += int(found.cueless[valid].sum())
            for i in range(min(examples - len(kept), int(valid.sum()))):
                name = source.images.class_name(int(episode.class_id[i]))
                kept.append(Example(Episode(*(x[i] for x in episode)), name, found.mask[i]))
            on_batch(done)
    digest = episode_list_digest(source.spec(i) for i in range(len(source)))
    classes = {c: source.images.class_name(c) for c in source.fold.classes}
    seconds = time.monotonic() - start
    return Result(iou.scores(), classes, done, digest, seconds, kept, references, cueless)
