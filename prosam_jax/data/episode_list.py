"""Prints a benchmark's episodes and their SHA-256.

    python -m prosam_jax.data.episodes --config configs/pascal.py --config.data.root=VOC2012 \
        --list [--split=train]

For the test split these are the `eval.episodes` episodes that `evaluate.py` scores, whose digest
`results.json` holds; for the training split those of the first pass over the images. A line is
"index class target references...". Without `--list` only the digest is printed.
"""

from absl import flags
from ml_collections import config_flags

from prosam_jax import cli
from prosam_jax.config import Config
from prosam_jax.data import datasets, folds
from prosam_jax.data.episodes import EpisodeSource, episode_list_digest


def source(cfg: Config, split: str) -> EpisodeSource:
    """The episodes that a run with these settings is tested on, or trained on at first."""
    if split == "test":
        return datasets.episodes(cfg.data, split, seed=cfg.eval.seed, length=cfg.eval.episodes)
    return datasets.episodes(cfg.data, split, seed=cfg.seed)


def run() -> None:
    """Runs the command."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/, pascal.py if none.")
    flags.DEFINE_enum("split", "test", folds.SPLITS, "Which episodes.")
    flags.DEFINE_bool("list", False, "Whether to print the episodes, one in a line.")
    cli.run(_main)


def _main() -> None:
    values = flags.FLAGS
    drawn = source(Config.from_dict(values.config), values.split)
    specs = [drawn.spec(i) for i in range(len(drawn))]
    print(folds.describe(drawn.fold))
    if values.list:
        print(*specs, sep="\n")
    print(f"{len(specs):,} episodes, sha256 {episode_list_digest(specs)}")
