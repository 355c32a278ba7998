"""Prints a benchmark's episodes and their SHA-256.

    prosam episodes --config pascal --config.data.root=VOC2012 --config.data.fold=1
    prosam episodes --config shapes --split train --list

For the test split these are the `eval.episodes` episodes that `prosam evaluate` scores, whose
SHA-256 is in results.json (the first of `eval.seeds` lists; the others follow with
--config.eval.seed); for the training split those of the first pass over the images. With
--list each episode is a line "index class target references..."; otherwise only their number and
SHA-256 are printed.
"""

import argparse

from prosam_jax.cli import settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument("--split", choices=["train", "test"], default="test", help="default: test")
    parser.add_argument("--list", action="store_true", help="print the episodes, one per line")
    settings.add_arguments(parser, "default: the paper's settings for Pascal-5i")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the episodes."""
    from prosam_jax.data import datasets, folds
    from prosam_jax.data.episodes import episode_list_digest

    cfg = settings.config(args)
    if args.split == "test":
        episodes, seed = cfg.eval.episodes, cfg.eval.seed
        drawn = datasets.episodes(cfg.data, "test", seed=seed, length=episodes)
    else:
        drawn = datasets.episodes(cfg.data, "train", seed=cfg.seed)
    specs = [drawn.spec(i) for i in range(len(drawn))]
    print(folds.describe(drawn.fold))
    if args.list:
        print(*specs, sep="\n")
    print(f"{len(specs):,} episodes, sha256 {episode_list_digest(specs)}")
