"""The benchmarks by name."""

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.coco import coco_episodes
from prosam_jax.data.datasets.folder import own_episodes
from prosam_jax.data.datasets.pascal import pascal_episodes, transfer_episodes
from prosam_jax.data.datasets.shapes import shapes_episodes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import COCO_TO_PASCAL

_EPISODES = {
    "pascal": pascal_episodes,
    "coco": coco_episodes,
    "shapes": shapes_episodes,
    "folder": own_episodes,
}


def episodes(cfg: DataConfig, split: str, *, seed: int, length: int | None = None) -> EpisodeSource:
    """Episodes of one split of a fold of the benchmark called `cfg.name`.

    Args:
        cfg: Benchmark, folder, fold, shots and image size.
        split: "train" (base classes) or "test" (novel classes, of `cfg.test`).
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the images.

    Raises:
        UserError: The benchmark's files are not as they must be.
    """
    if split == "test" and cfg.test != "own":
        return transfer_episodes(cfg, COCO_TO_PASCAL[cfg.test], seed=seed, length=length)
    return _EPISODES[cfg.name](cfg, split, seed=seed, length=length)
