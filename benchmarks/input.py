"""Steps of a real training, with its loader: their time, memory, and how long the device waits.

    python -m benchmarks.input --root=VOCdevkit/VOC2012 [--workers 0 2]
    python -m benchmarks.input --sam=vit_h --backbone=resnet50 --dtype float32 bfloat16 --cache

Without --root it writes pictures of VOC's sizes to a temporary folder. Networks have random
weights. A step is sent to the device as soon as the one before the last is done and its batch has
arrived. If all steps are done before the batch arrives, the device was idle, for at most as long as
the run waited for the batch; all of that wait counts as idle. Bytes are those copied to the device
per step. "first step" includes tracing and compiling. With --cache, SAM's embeddings are also read
from a feature cache, which is filled first.
"""

import argparse
import contextlib
import pathlib
import tempfile
import time
from typing import Any, cast

import jax
import numpy as np

from benchmarks import measure, ours
from benchmarks.loader import write_pictures
from prosam_jax import sharding
from prosam_jax.config import BACKBONES, DTYPES, SAM_MODELS, Config
from prosam_jax.data.loader import make_loader
from prosam_jax.feature_cache.build import build
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.training import loop

OUT = pathlib.Path("runs/benchmarks/input.json")
WARM_UP = 3  # steps; the first compiles
EPOCHS = 100  # the paper's, at 1,860 steps for fold 1 of Pascal-5i
EPOCH_STEPS = 1860


def settings(args: argparse.Namespace, root: str, dtype: str, features: str) -> Config:
    """The run; of Pascal-5i's folds, the generated pictures show fold 1's test classes."""
    return Config.from_dict(
        {
            "data": {"root": root, "fold": 1, "image_size": args.size},
            "sam": {"model": args.sam, "weights": "random", "dtype": dtype},
            "backbone": {"name": args.backbone, "weights": "random"},
            "cache": {"dir": features},
            "distribution": {"samples": args.samples},
            "train": {"steps": WARM_UP + args.steps, "batch_size": args.batch},
            "eval": {"episodes": 1},
        }
    )


def idle(
    trainer: loop.Trainer, steps: int, workers: int, cache: FeatureCache | None
) -> dict[str, Any]:
    """Takes steps as `loop.Trainer.run` does; shares of the time after the warm-up."""
    cfg = trainer.cfg
    waits, idles, crossed = [], [], 0
    logs: list[Any] = []
    # Each run begins with a copy, because a step donates its state.
    state = jax.tree.map(lambda x: x.copy(), trainer.state)
    loader = make_loader(
        trainer.source, batch_size=cfg.train.batch_size, stop=WARM_UP + steps, workers=workers
    )
    with contextlib.closing(loader):
        for i in range(WARM_UP + steps):
            if i == WARM_UP:
                jax.block_until_ready(logs)
                start = time.perf_counter()
                waits.clear()
                idles.clear()
            began = time.perf_counter()
            episode = next(loader)
            batch = sharding.split_batch(episode, trainer.mesh)
            embeddings = cache(episode.target_image) if cache else None
            waits.append(time.perf_counter() - began)
            done = bool(logs) and cast(Any, logs[-1]["loss"]).is_ready()
            idles.append(waits[-1] if done else 0.0)
            crossed = sum(x.nbytes for x in episode)
            jax.block_until_ready(logs[-2:-1])
            state, found = trainer.train_step(state, trainer.frozen, batch, embeddings)
            logs.append(found)
            if i == 0:
                loss = float(found["loss"])
                first = time.perf_counter() - began
        jax.block_until_ready(logs)
        total = time.perf_counter() - start
    if not np.isfinite([float(x["loss"]) for x in logs]).all():
        raise ValueError(f"a loss is not finite: {[float(x['loss']) for x in logs]}")
    return {
        "seconds per step": total / steps,
        "first step s": first,
        "first loss": loss,
        "waiting": sum(waits) / total,
        "idle at most": sum(idles) / total,
        "steps that found it idle": sum(x > 0 for x in idles),
        "MB per step": crossed / 1e6,
        "peak GB so far": ours.peak() / 1e9,
        "epoch, minutes": total / steps * EPOCH_STEPS / 60,
        f"{EPOCHS} epochs, hours": total / steps * EPOCH_STEPS * EPOCHS / 3600,
    }


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a VOC2012 folder")
    parser.add_argument("--sam", choices=SAM_MODELS, default="tiny")
    parser.add_argument("--backbone", choices=BACKBONES, default="tiny")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cache", action="store_true", help="also with a full feature cache")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = pathlib.Path(temporary)
        if not args.root:
            write_pictures(place / "voc")
        for dtype in args.dtype:
            features = str(place / dtype) if args.cache else ""
            trainer = loop.Trainer(settings(args, args.root or str(place / "voc"), dtype, features))
            for name, cache in [("none", None), ("full", trainer.cache)][: 1 + args.cache]:
                if cache:
                    source = trainer.source
                    build(cache, source, source.fold.images, batch_size=args.batch)
                for workers in args.workers:
                    row = {"dtype": dtype, "cache": name, "workers": workers}
                    rows.append(row | idle(trainer, args.steps, workers, cache))
                    print(rows[-1], flush=True)
                    result = {"settings": measure.settings(args), "rows": rows}
                    measure.write(args.out, result)
    print(measure.table(rows))
    return rows


if __name__ == "__main__":
    main()
