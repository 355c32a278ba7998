"""The benchmarks by name."""

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets import folder
from prosam_jax.data.datasets.coco import coco_episodes
from prosam_jax.data.datasets.folder import own_episodes
from prosam_jax.data.datasets.pascal import pascal_episodes, transfer_episodes
from prosam_jax.data.datasets.shapes import SHAPES_5I, shapes_episodes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import COCO_20I, COCO_TO_PASCAL, PASCAL_5I

_EPISODES = {
    "pascal": pascal_episodes,
    "coco": coco_episodes,
    "shapes": shapes_episodes,
    "folder": own_episodes,
}


RULES = {"pascal": PASCAL_5I, "coco": COCO_20I, "shapes": SHAPES_5I}


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


def identity(cfg: DataConfig) -> str:
    """What the dataset of `cfg` is known by, wherever it lies (`FoldRule.dataset`).

    Raises:
        UserError: It is a folder of one's own that is not as it must be.
    """
    return folder.identity(cfg) if cfg.name == "folder" else RULES[cfg.name].name
