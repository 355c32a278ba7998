"""Fills the feature cache with SAM's embeddings of all target images of a run.

    python -m prosam_jax.feature_cache build --config configs/pascal.py \
        --config.data.root=DIR --config.data.fold=0 --config.cache.dir=DIR

What is there is checked and left; what is missing or damaged is computed, `eval.batch_size` images
at once. Stopped and started again it goes on, and several may run at once, on one machine or on
several that see the folder.
"""

from absl import flags
from ml_collections import config_flags

from prosam_jax import cli, console, model, sharding
from prosam_jax.config import Config
from prosam_jax.data import datasets, folds
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate, results
from prosam_jax.feature_cache.build import build, missing
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.feature_cache.entries import size
from prosam_jax.report import scores


def main() -> None:
    """Looks, says what is missing and what it takes, and computes it."""
    cfg = Config.from_dict(flags.FLAGS.config)
    if not cfg.cache.dir:
        raise UserError("cache.dir is not set; pass --config.cache.dir=DIR")
    train = datasets.episodes(cfg.data, "train", seed=cfg.seed)
    test = evaluate.test_episodes(cfg)
    queries = dict.fromkeys(test.spec(i).target_id for i in range(len(test)))
    of = [(train, train.fold.images), (test, tuple(queries))]  # maybe pictures of two datasets
    mesh = sharding.make_mesh(cfg.eval.batch_size)
    sam = sharding.replicate(model.build_sam(cfg), mesh)
    cache = FeatureCache(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh))
    entries = cache.entries
    for line in (
        f"devices: {mesh.size} of {results.device_line()}",
        f"frozen: {scores.frozen_line(cfg)}",
        folds.describe(train.fold),
        folds.describe(test.fold),
        f"feature cache: {entries.folder}",
    ):
        print(line, flush=True)
    todo = []
    for source, ids in of:
        with console.counting("looking", len(ids)) as count:
            todo.append((source, missing(cache, source, ids, count)))
    images, lacking = (sum(len(ids) for _, ids in x) for x in (of, todo))
    print(
        f"{images:,} images, {len(entries.damaged):,} of their entries damaged, {lacking:,} to "
        f"compute: {size(lacking * entries.nbytes)} of {size(entries.free())} free",
        flush=True,
    )
    entries.check_space(lacking)
    computed = 0
    for source, ids in todo:
        with console.counting("computing", len(ids)) as count:
            computed += build(cache, source, ids, batch_size=cfg.eval.batch_size, on_image=count)
    print(f"computed {computed:,}; the cache is complete with {entries.count():,} entries")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file of configs/, pascal.py if none.")
    cli.run(main, command="build")
