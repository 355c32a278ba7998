"""Episodes of the datasets, by the value of `data.name`."""

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.coco import coco_episodes
from prosam_jax.data.datasets.folder import own_episodes
from prosam_jax.data.datasets.fss import fss_episodes
from prosam_jax.data.datasets.pascal import pascal_episodes, transfer_episodes
from prosam_jax.data.datasets.shapes import shapes_episodes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import COCO_TO_PASCAL

_EPISODES = {
    "pascal": pascal_episodes,
    "coco": coco_episodes,
    "fss": fss_episodes,
    "shapes": shapes_episodes,
    "folder": own_episodes,
}


def scored(cfg: DataConfig) -> tuple[str, ...]:
    """The splits that runs are scored on: the first during training, the last at the end."""
    return ("val", "test") if cfg.name == "fss" else ("test",)


def episodes(cfg: DataConfig, split: str, *, seed: int, length: int | None = None) -> EpisodeSource:
    """Episodes of one split of a fold of the dataset `cfg.name`.

    Args:
        cfg: Dataset, folder, fold, shots and image size.
        split: "train" (base classes), "test" (novel classes, of `cfg.test`), or what else is in
            `scored(cfg)`.
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the images.

    Raises:
        UserError: Files of the dataset are missing or not valid, or have too few images.
    """
    if split == "test" and cfg.test != "own":
        return transfer_episodes(cfg, COCO_TO_PASCAL[cfg.test], seed=seed, length=length)
    return _EPISODES[cfg.name](cfg, split, seed=seed, length=length)
