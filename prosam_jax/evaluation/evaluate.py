"""The evaluation that validation in training and `prosam evaluate` share."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.episodes import EpisodeSource, episode_list_digest
from prosam_jax.data.loader import make_loader
from prosam_jax.data.transforms import resize_mask
from prosam_jax.evaluation.prediction import RESULT, Prediction
from prosam_jax.evaluation.results import Counted, Example, Result
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.sharding import split_batch
from prosam_jax.types import Episode


def test_episodes(cfg: Config, split: str = "test", which: int = 0) -> EpisodeSource:
    """A fixed list of test episodes of a fold.

    Args:
        cfg: The settings.
        split: "test", or another split of `datasets.scored`.
        which: Which list, from 0 to `eval.seeds` - 1.

    Raises:
        UserError: The dataset is missing or not valid.
    """
    seed = cfg.eval.seed + which
    source = datasets.episodes(cfg.data, split, seed=seed, length=cfg.eval.episodes)
    if cfg.eval.resolution == "square":
        return source
    targets = {source.spec(i).target_id for i in range(len(source))}
    sizes = [source.images.labels(target).shape for target in targets]
    height, width = map(max, zip(*sizes, strict=True))
    return dataclasses.replace(source, canvas=(height, width))


def evaluate(
    predict: Callable[..., Prediction],
    params: nnx.State,
    frozen: nnx.State,
    source: EpisodeSource,
    *,
    batch_size: int,
    mesh: Mesh,
    absent: bool = False,
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
        absent: Whether classes without an episode count as 0.
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
    counts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    class_id: list[np.ndarray] = []
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
            for name, pixels in found.counts.items():
                counts[name].append(pixels[valid])
            class_id.append(episode.class_id[valid])
            done += int(valid.sum())
            references += found.empty_annotations[valid].size
            empty_annotations += int(found.empty_annotations[valid].sum())
            for i in range(min(examples - len(kept), int(valid.sum()))):
                kept.append(_example(source, episode, found, i))
            on_batch(done)
    specs = [source.spec(i) for i in range(len(source))]
    one = Counted(
        seed=source.seed,
        digest=episode_list_digest(specs),
        classes={c: source.images.class_name(c) for c in source.fold.classes},
        class_id=np.concatenate(class_id),
        target=[x.target_id for x in specs],
        counts={name: np.concatenate(pixels) for name, pixels in counts.items()},
    )
    return Result(
        lists=[one],
        absent=absent,
        seconds=time.monotonic() - start,
        examples=kept,
        references=references,
        empty_annotations=empty_annotations,
    )


def _example(source: EpisodeSource, batch: Episode, found: Prediction, i: int) -> Example:
    """Episode i of a batch, with all masks in the square that its picture has."""
    height, width = batch.target_size[i].tolist()

    def square(mask: np.ndarray) -> np.ndarray:
        return resize_mask(mask[:height, :width], source.size) if source.canvas else mask

    masks = {name: square(mask[i]) for name, mask in found.masks.items()}
    episode = Episode(*(x[i] for x in batch))
    uncertainty = None if found.uncertainty is None else square(found.uncertainty[i])
    return Example(
        episode._replace(
            target_mask=square(episode.target_mask), target_ignore=square(episode.target_ignore)
        ),
        source.images.class_name(int(episode.class_id)),
        masks.pop(RESULT),
        masks,
        uncertainty,
    )
