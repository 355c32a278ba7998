r"""Computes SAM's embeddings of all target images of a run in advance.

    prosam cache build --config pascal --config.data.root=VOC2012 --config.data.fold=0 \
        --config.cache.dir=cache

Existing entries are checked and kept; missing or damaged ones are computed, `eval.batch_size`
images at a time. Run it again to resume it. Several may run at the same time, on one machine or on
several that share the folder.
"""

import argparse

from prosam_jax.cli import settings
from prosam_jax.config import Config
from prosam_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    what = parser.add_subparsers(metavar="WHAT")
    build = what.add_parser(
        "build", help="fill the cache", description=__doc__, formatter_class=parser.formatter_class
    )
    settings.add_arguments(build, "default: the paper's settings for Pascal-5i")
    build.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fills the cache that the settings name."""
    fill(settings.config(args))


def fill(cfg: Config) -> None:
    """Finds the missing entries, prints how many there are and their size, and computes them."""
    from prosam_jax import console, sharding
    from prosam_jax.data import datasets, folds
    from prosam_jax.evaluation import evaluate, results
    from prosam_jax.feature_cache.build import build, missing
    from prosam_jax.feature_cache.cache import FeatureCache
    from prosam_jax.feature_cache.entries import size
    from prosam_jax.report import scores
    from prosam_jax.sam.build_sam import build_sam

    if not cfg.cache.dir:
        raise UserError("cache.dir is not set: pass --config.cache.dir=DIR")
    train = datasets.episodes(cfg.data, "train", seed=cfg.seed)
    of = [(train, train.fold.images)]
    for split in datasets.scored(cfg.data):
        lists = [evaluate.test_episodes(cfg, split, which) for which in range(cfg.eval.seeds)]
        queries = dict.fromkeys(one.spec(i).target_id for one in lists for i in range(len(one)))
        test = lists[0]
        of.append((test, tuple(queries)))  # it may be another dataset
    mesh = sharding.make_mesh(cfg.eval.batch_size)
    sam = sharding.replicate(build_sam(cfg.sam, cfg.seed), mesh)
    cache = FeatureCache(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh))
    entries = cache.entries
    for line in (
        f"devices: {mesh.size} of {results.device_line()}",
        f"frozen: {scores.frozen_line(cfg)}",
        *(folds.describe(source.fold) for source, _ in of),
        f"feature cache: {entries.folder}",
    ):
        console.note(line)
    todo = []
    for source, ids in of:
        with console.counting("checking the cache", len(ids)) as count:
            todo.append((source, missing(cache, source, ids, count)))
    images, lacking = (sum(len(ids) for _, ids in x) for x in (of, todo))
    console.note(
        f"{images:,} images, {len(entries.damaged):,} damaged entries, {lacking:,} to compute: "
        f"they need {size(lacking * entries.nbytes)}, {size(entries.free())} are free"
    )
    entries.check_space(lacking)
    computed = 0
    for source, ids in todo:
        with console.counting("computing", len(ids)) as count:
            computed += build(cache, source, ids, batch_size=cfg.eval.batch_size, on_image=count)
    print(f"computed {computed:,}; the cache is complete with {entries.count():,} entries")
