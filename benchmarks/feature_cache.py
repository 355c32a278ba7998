"""Time that the feature cache saves in a training step, cost of building it, and its errors.

    python -m benchmarks.feature_cache --root=VOCdevkit/VOC2012

Weights are random; time and rounding do not depend on what a network has learned. Steps with and
without the cache take turns on the same batches, each side with its own state, so that their losses
can be compared, too. A step's time is that of `prosam train`, without reading pictures.
"""

import argparse
import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from prosam_jax import model, sharding
from prosam_jax.config import CACHE_DTYPES, CacheConfig, Config
from prosam_jax.data.loader import make_loader
from prosam_jax.feature_cache.build import build, missing
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.feature_cache.packing import pack, unpack
from prosam_jax.sam.build_sam import build_sam
from prosam_jax.sam.model import Sam
from prosam_jax.training import loop
from prosam_jax.types import Episode

OUT = pathlib.Path("runs/benchmarks/feature_cache.json")


class Cost(NamedTuple):
    """Wall time of a step, and CPU time of all threads, which other programs affect less."""

    seconds: float
    cpu_seconds: float


class Training:
    """A run that repeats the same batches in every turn, with or without a cache."""

    def __init__(self, trainer: loop.Trainer, episodes: Sequence[Episode]):
        self.trainer, self.episodes = trainer, episodes
        self.state = jax.tree.map(lambda x: x.copy(), trainer.state)
        self.losses: list[float] = []

    def __call__(self, cache: FeatureCache | None) -> Cost:
        """Cost of a step, the mean over the batches."""
        start, cpu = time.perf_counter(), time.process_time()
        for episode in self.episodes:
            batch = sharding.split_batch(episode, self.trainer.mesh)
            embeddings = cache(episode.target_image) if cache else None
            self.state, logs = self.trainer.train_step(
                self.state, self.trainer.frozen, batch, embeddings
            )
            self.losses.append(float(logs["loss"]))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return Cost(seconds / len(self.episodes), cpu / len(self.episodes))


def settings(args: argparse.Namespace) -> Config:
    """A run on fold 1 of Pascal-5i with random networks."""
    return Config.from_dict(
        {
            "data": {"root": args.root, "fold": 1, "image_size": args.image_size},
            "sam": {"model": args.model, "weights": "random", "image_size": args.sam_size},
            "backbone": {"name": args.backbone, "weights": "random"},
            "train": {"steps": args.steps, "batch_size": args.batch_size},
            "eval": {"episodes": 1},
        }
    )


def steps(
    trainer: loop.Trainer, open_cache: Callable[[str], FeatureCache], args: argparse.Namespace
) -> dict[str, Any]:
    """Times of steps in turns, and how much the losses differ from those without a cache."""
    loader = make_loader(trainer.source, batch_size=args.batch_size, stop=args.steps)
    with contextlib.closing(loader):
        episodes = list(loader)
    caches = {"none": None} | {dtype: open_cache(dtype) for dtype in CACHE_DTYPES}
    runs = {name: Training(trainer, episodes) for name in caches}
    cases = {name: lambda name=name: runs[name](caches[name]) for name in caches}
    for name, case in cases.items():  # compiles, and fills the caches
        print(f"{name}: first steps {case().seconds:.1f} s", flush=True)
    found = measure.in_turns(cases, args.turns, lambda n: print(f"turn {n}", flush=True))
    plain = np.array(runs["none"].losses)
    result = {}
    for name, costs in found.items():
        result[name] = {}
        for field in Cost._fields:
            own, base = ([getattr(x, field) for x in of] for of in (costs, found["none"]))
            spread, ratio = measure.spread(own), measure.ratio(base, own)
            result[name][field] = {"a step": spread._asdict(), "times less": ratio._asdict()}
            print(f"  {name:9} {field:12} {spread!s:20} a step  {ratio!s:20} times less")
        apart = np.abs(np.array(runs[name].losses) / plain - 1).max().item()
        result[name]["largest difference of losses"] = apart
        print(f"  {name:9} losses of {len(plain)} steps within {apart:.1e}")
    return result


def building(trainer: loop.Trainer, cache: FeatureCache, images: int, batch: int) -> dict[str, Any]:
    """Costs per image of computing entries, and of checking existing ones."""
    ids = trainer.source.fold.images[:images]
    cache.compute(np.stack([trainer.source.image(ids[0])] * batch))  # compiles
    result = {}
    tasks = {
        "computing": lambda: build(cache, trainer.source, ids, batch_size=batch),
        "looking": lambda: missing(cache, trainer.source, ids),
    }
    for name, task in tasks.items():
        start, cpu = time.perf_counter(), time.process_time()
        task()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        result[name] = Cost(seconds / len(ids), cpu / len(ids))._asdict()
        print(f"  {name} {result[name]}")
    return result


def errors(sam: Sam, images: np.ndarray) -> dict[str, Any]:
    """Root mean square error over the embedding's: of all channels, and of the worst one."""
    exact = jax.jit(model.embed)(sam, images)
    result = {}
    for dtype in CACHE_DTYPES:
        apart = unpack(pack(exact, dtype), "float32") - exact
        square, whole = ((x * x).sum((0, 1, 2)) for x in (apart, exact))
        result[dtype] = {
            "rms": jnp.sqrt(square.sum() / whole.sum()).item(),
            "worst channel": jnp.sqrt((square / whole).max()).item(),
        }
        print(f"  {dtype:9} {result[dtype]}")
    return result


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="a VOC2012 folder")
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--sam_size", type=int, default=512, help="side of SAM's input")
    parser.add_argument("--image_size", type=int, default=512, help="side of pictures and masks")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, default=12, help="images to build entries for")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        cfg = settings(args)
        trainer = loop.Trainer(cfg)
        sam = sharding.replicate(build_sam(cfg.sam, cfg.seed), trainer.mesh)

        def open_cache(dtype: str, folder: str = "training") -> FeatureCache:
            kept = CacheConfig.of(dir=f"{place}/{folder}", dtype=dtype)
            return FeatureCache(kept, sam, lambda x: sharding.split_batch(x, trainer.mesh))

        images = np.stack([trainer.source.image(i) for i in trainer.source.fold.images[:4]])
        result = {
            "errors": errors(sam, images),
            "building": building(
                trainer, open_cache("bfloat16", "built"), args.images, args.batch_size
            ),
            "steps": steps(trainer, open_cache, args),
        }
    told = {k: v for k, v in vars(args).items() if k != "out"}
    measure.write(args.out, {"settings": told} | result | {"peak memory": measure.peak_memory()})


if __name__ == "__main__":
    main()
