"""The benchmarks by name."""

from prosam_jax.config import DataConfig
from prosam_jax.data import folds
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.pascal import pascal_episodes
from prosam_jax.data.shapes import shapes_episodes


def episodes(cfg: DataConfig, split: str, *, seed: int, length: int | None = None) -> EpisodeSource:
    """Episodes of one split of a fold of the benchmark called `cfg.name`.

    Args:
        cfg: Benchmark, folder, fold, shots and image size.
        split: "train" (base classes) or "test" (novel classes).
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the images.

    Raises:
        ValueError: The benchmark's files are not as they must be.
    """
    build = {"pascal": pascal_episodes, "shapes": shapes_episodes}[cfg.name]
    return build(cfg, split, seed=seed, length=length)


def describe(cfg: DataConfig, source: EpisodeSource) -> str:
    """One line about the images that episodes are drawn from."""
    if cfg.name == "pascal":
        return folds.describe(source.fold)
    fold = source.fold
    return f"Shapes-5i fold {fold.fold} {fold.split}: {len(fold.images):,} generated images"
