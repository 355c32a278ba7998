"""The evaluation that validation in training and `prosam evaluate` share."""

import collections
import contextlib
import operator
import time
from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh

from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.episodes import EpisodeSource, episode_list_digest
from prosam_jax.data.loader import make_loader
from prosam_jax.evaluation.metrics import Areas, IoU
from prosam_jax.evaluation.prediction import Prediction
from prosam_jax.evaluation.results import Example, Result
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.sharding import split_batch
from prosam_jax.types import Episode


def test_episodes(cfg: Config, split: str = "test") -> EpisodeSource:
    """The fixed list of test episodes of a fold, or of another split of `datasets.scored`.

    Raises:
        UserError: The dataset is missing or not valid.
    """
    return datasets.episodes(cfg.data, split, seed=cfg.eval.seed, length=cfg.eval.episodes)


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
    patience: float = 50,
    examples: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Result:
    """Scores the mean prompts on every episode of `source`.

    Args:
        predict: Compiled by `prediction.make_predict_step` or `controls.make_step`.
        params: The prompt encoder's parameters.
        frozen: SAM and the backbone.
        source: The fixed list of episodes.
        batch_size: Episodes decoded at once, rounded up to a multiple of the mesh's devices.
        mesh: Devices that share a batch.
        cache: Cache of SAM's embeddings of the targets, None to compute them.
        workers: Processes that read episodes.
        patience: Seconds without an episode after which the reading counts as hanging.
        examples: How many of the first episodes to keep.
        on_batch: Called with the number of episodes done so far, also while a batch is waited for.

    Raises:
        UserError: An image or a mask cannot be read, or a reader was killed or hangs.
    """
    start = time.monotonic()
    kept, done, references, empty_annotations = [], 0, 0, 0
    ious: dict[str, IoU] = collections.defaultdict(IoU)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    loader = make_loader(
        source,
        batch_size=batch_size,
        workers=workers,
        patience=patience,
        on_wait=lambda: on_batch(done),
    )
    with contextlib.closing(loader):
        for episode in loader:
            embeddings = cache(episode.target_image) if cache else None
            batch = split_batch(episode, mesh)
            found = jax.device_get(predict(params, frozen, batch, embeddings))
            valid = episode.valid
            for name, areas in {"": found.areas, **found.controls}.items():
                ious[name].add(Areas(*(x[valid] for x in areas)), episode.class_id[valid])
            done += int(valid.sum())
            references += found.empty_annotations[valid].size
            empty_annotations += int(found.empty_annotations[valid].sum())
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
        empty_annotations=empty_annotations,
        controls=scores,
    )
