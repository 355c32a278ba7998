"""Whole evaluations: episodes per second with and without a feature cache, and the busy share.

    python -m benchmarks.episodes [--root=VOCdevkit/VOC2012] [--episodes 1000]
    python -m benchmarks.episodes --sam=vit_h --backbone=resnet50 --dtype=bfloat16 --workers=8

It does what `prosam evaluate` does: reads pictures, predicts the masks of a fixed list of episodes
and scores them. Without --root it writes pictures of VOC's sizes to a temporary folder. Networks
have random weights. Rates exclude the first batch; a first evaluation compiles and is not counted.
The busy share comes from a profile of some batches: the share of the time from the device's first
to its last activity in which it runs kernels (GPU) or compiled programs (CPU).
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import jax

from benchmarks import measure, ours
from benchmarks.loader import write_pictures
from prosam_jax import sharding
from prosam_jax.config import BACKBONES, SAM_MODELS, CacheConfig, Config
from prosam_jax.evaluation import evaluate
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.sam.build_sam import build_sam
from prosam_jax.training import loop

OUT = pathlib.Path("runs/benchmarks/episodes.json")


def evaluated(trainer: loop.Trainer, cache: FeatureCache | None, episodes: int) -> dict[str, Any]:
    """Rate and score of an evaluation on the first `episodes` of the list."""
    marks = []
    cfg = trainer.cfg
    result = evaluate.evaluate(
        trainer.predict,
        trainer.state.params,
        trainer.frozen,
        dataclasses.replace(trainer.test, length=episodes),
        batch_size=cfg.eval.batch_size,
        mesh=trainer.mesh,
        cache=cache,
        workers=cfg.data.workers,
        on_batch=lambda done: marks.append((done, time.perf_counter())),
    )
    (first, began), (last, ended) = marks[0], marks[-1]
    rate = (last - first) / (ended - began) if last > first else None
    return {"episodes/s": rate, "mIoU": result.scores.miou}


def busy(folder: pathlib.Path) -> float:
    """The device's busy share in a profile that `jax.profiler` wrote into the folder.

    Raises:
        ValueError: The profile shows no activity of a device.
    """
    return covered([(start, stop) for _, start, stop in events(folder)])


def events(folder: pathlib.Path) -> list[tuple[str, float, float]]:
    """Name, start and stop in ns of kernels (GPU) or runs of compiled programs (CPU) in a profile.

    Raises:
        ValueError: The profile shows no activity of a device.
    """
    file = next(folder.rglob("*.xplane.pb"))
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            on_gpu = plane.name.startswith("/device:GPU") and line.name.startswith("Stream")
            for event in line.events:
                if on_gpu or event.name == "ThunkExecutor::Execute":
                    stop = event.start_ns + event.duration_ns
                    found.append((event.name, event.start_ns, stop))
    if not found:
        raise ValueError(f"{file} shows no activity of a device")
    return found


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The share of the time from the first start to the last stop that any span covers."""
    ordered = sorted(spans)
    total, reached = 0.0, ordered[0][0]
    for start, stop in ordered:
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total / (reached - ordered[0][0])


def profiled(trainer: loop.Trainer, cache: FeatureCache | None, episodes: int) -> float:
    """The device's busy share while some episodes are evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            evaluated(trainer, cache, episodes)
        return busy(pathlib.Path(folder))


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a VOC2012 folder")
    parser.add_argument("--sam", choices=SAM_MODELS, default="tiny")
    parser.add_argument("--backbone", choices=BACKBONES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=512, help="side of pictures and masks")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--profiled", type=int, default=10, help="batches in the profile")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = pathlib.Path(temporary)
        if not args.root:
            write_pictures(place / "voc")
        cfg = Config.from_dict(
            {
                "data": {
                    "root": args.root or str(place / "voc"),
                    "fold": 1,  # the generated pictures show its test classes
                    "image_size": args.size,
                    "workers": args.workers,
                },
                "sam": {"model": args.sam, "weights": "random", "dtype": args.dtype},
                "backbone": {"name": args.backbone, "weights": "random"},
                "eval": {"episodes": args.episodes, "batch_size": args.batch},
            }
        )
        trainer = loop.Trainer(cfg)
        sam = sharding.replicate(build_sam(cfg.sam, cfg.seed), trainer.mesh)
        kept = CacheConfig(dir=str(place / "features"))
        cache = FeatureCache(kept, sam, lambda x: sharding.split_batch(x, trainer.mesh))
        few = min(args.episodes, args.batch * args.profiled)
        evaluated(trainer, None, args.batch)
        for name, found in (("none", None), ("filling", cache), ("full", cache)):
            row = evaluated(trainer, found, args.episodes)
            if name != "filling":
                row["busy share"] = profiled(trainer, found, few)
            row["peak GB"] = ours.peak() / 1e9
            rows.append({"cache": name, "busy share": None} | row)
            print(rows[-1], flush=True)
    print(measure.table(rows))
    measure.write(args.out, {"settings": measure.settings(args), "rows": rows})


if __name__ == "__main__":
    main()
