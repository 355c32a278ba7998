"""The one evaluation, for validation in training and for `evaluate.py`."""

import collections
import contextlib
import dataclasses
import operator
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from prosam_jax.config import Config
from prosam_jax.data import benchmark
from prosam_jax.data.episodes import EpisodeSource, episode_list_digest
from prosam_jax.data.loader import make_loader
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.training.metrics import Areas, IoU, Scores
from prosam_jax.training.sharding import split_batch
from prosam_jax.training.step import Prediction
from prosam_jax.types import Episode


class Example(NamedTuple):
    """An episode (no batch axis), its class and what was predicted for it.

    Attributes:
        episode: The episode; where controls were scored, its references and as many wrong ones.
        class_name: What its class is called.
        prediction: The mask.
        controls: Those of the controls, by name.
        uncertainty: How far masks of sampled prompts disagree, if that was asked for.
    """

    episode: Episode
    class_name: str
    prediction: Bool[np.ndarray, "h w"]
    controls: dict[str, Bool[np.ndarray, "h w"]]
    uncertainty: Float[np.ndarray, "h w"] | None


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
        controls: Scores of what this one is measured against, by name (`training.controls`).
        prior_threshold: Where the cosine prior was cut for them.
    """

    scores: Scores
    classes: dict[int, str]
    episodes: int
    digest: str
    seconds: float
    examples: list[Example]
    references: int
    cueless: int
    controls: dict[str, Scores]
    prior_threshold: float | None = None


def test_episodes(cfg: Config) -> EpisodeSource:
    """The fixed list of episodes of novel classes that every result of a fold stands on."""
    return benchmark.episodes(cfg.data, "test", seed=cfg.eval.seed, length=cfg.eval.episodes)


def evaluate(
    predict: Callable[..., Prediction],
    params: nnx.State,
    frozen: nnx.State,
    source: EpisodeSource,
    *,
    batch_size: int,
    mesh: Mesh,
    cache: FeatureCache | None = None,
    workers: int = 0,
    examples: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Result:
    """Scores the mean prompts on every episode of `source`.

    Args:
        predict: Compiled by `step.make_predict_step` or `controls.make_step`.
        params: The prompt encoder's parameters.
        frozen: SAM and the backbone.
        source: The fixed list of episodes.
        batch_size: Episodes decoded at once, rounded up to a multiple of the mesh's devices.
        mesh: Devices that share a batch.
        cache: Knows SAM's embeddings of the targets, or comes to know them.
        workers: Processes that read.
        examples: How many of the first episodes to keep.
        on_batch: Called with the number of episodes done so far.
    """
    start = time.monotonic()
    kept, done, references, cueless = [], 0, 0, 0
    ious: dict[str, IoU] = collections.defaultdict(IoU)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    with contextlib.closing(make_loader(source, batch_size=batch_size, workers=workers)) as loader:
        for episode in loader:
            embeddings = cache(episode.query_image) if cache else None
            batch = split_batch(episode, mesh)
            found = jax.device_get(predict(params, frozen, batch, embeddings))
            valid = episode.valid
            for name, areas in {"": found.areas, **found.controls}.items():
                ious[name].add(Areas(*(x[valid] for x in areas)), episode.class_id[valid])
            done += int(valid.sum())
            references += found.cueless[valid].size
            cueless += int(found.cueless[valid].sum())
            for i in range(min(examples - len(kept), int(valid.sum()))):
                name = source.images.class_name(int(episode.class_id[i]))
                mask, masks, uncertainty = jax.tree.map(
                    operator.itemgetter(i), (found.mask, found.control_masks, found.uncertainty)
                )
                shown = Episode(*(x[i] for x in episode))
                kept.append(Example(shown, name, mask, masks, uncertainty))
            on_batch(done)
    digest = episode_list_digest(source.spec(i) for i in range(len(source)))
    classes = {c: source.images.class_name(c) for c in source.fold.classes}
    scores = {name: iou.scores() for name, iou in ious.items()}
    return Result(
        scores=scores.pop(""),
        classes=classes,
        episodes=done,
        digest=digest,
        seconds=time.monotonic() - start,
        examples=kept,
        references=references,
        cueless=cueless,
        controls=scores,
    )
