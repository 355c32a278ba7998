"""How long the device waits for data: steps of a real training, with its loader.

    python -m benchmarks.input --root=VOCdevkit/VOC2012 [--workers 0 2]
    python -m benchmarks.input --sam=vit_h --backbone=resnet50 --dtype=bfloat16  # on a GPU

Without --root it writes pictures of VOC's sizes to a temporary folder. Networks have random
weights. A step is sent to the device as soon as the previous one is done and its batch has arrived.
If the previous step is done before the batch arrives, the device was idle, for at most as long as
the run waited for the batch; all of that wait counts as idle. Bytes are those copied to the device
per step.
"""

import argparse
import contextlib
import pathlib
import tempfile
import time
from typing import Any, cast

import jax

from benchmarks import measure
from benchmarks.loader import write_pictures
from prosam_jax import sharding
from prosam_jax.config import BACKBONES, SAM_MODELS, Config
from prosam_jax.data.loader import make_loader
from prosam_jax.training import loop

OUT = pathlib.Path("runs/benchmarks/input.json")
WARM_UP = 3  # steps; the first compiles


def idle(trainer: loop.Trainer, steps: int) -> dict[str, Any]:
    """Takes steps as `loop.Trainer.run` does; shares of the time after the warm-up."""
    cfg = trainer.cfg
    waits, idles, crossed, logs = [], [], 0, None
    loader = make_loader(
        trainer.source,
        batch_size=cfg.train.batch_size,
        stop=WARM_UP + steps,
        workers=cfg.data.workers,
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
            waits.append(time.perf_counter() - began)
            done = logs is not None and cast(Any, logs["loss"]).is_ready()
            idles.append(waits[-1] if done else 0.0)
            crossed = sum(x.nbytes for x in episode)
            jax.block_until_ready(logs)
            trainer.state, logs = trainer.train_step(trainer.state, trainer.frozen, batch)
        jax.block_until_ready(logs)
        total = time.perf_counter() - start
    return {
        "steps": steps,
        "seconds per step": total / steps,
        "waiting for a batch, of all time": sum(waits) / total,
        "device idle at most, of all time": sum(idles) / total,
        "steps that found the device idle": sum(x > 0 for x in idles),
        "MB per step": crossed / 1e6,
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a VOC2012 folder")
    parser.add_argument("--sam", choices=SAM_MODELS, default="tiny")
    parser.add_argument("--backbone", choices=BACKBONES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        if not args.root:
            write_pictures(pathlib.Path(temporary))
        for workers in args.workers:
            cfg = Config.from_dict(
                {
                    "data": {
                        "root": args.root or temporary,
                        "image_size": args.size,
                        "workers": workers,
                    },
                    "sam": {"model": args.sam, "weights": "random", "dtype": args.dtype},
                    "backbone": {"name": args.backbone, "weights": "random"},
                    "distribution": {"samples": args.samples},
                    "train": {"steps": WARM_UP + args.steps, "batch_size": args.batch},
                }
            )
            rows.append({"workers": workers, **idle(loop.Trainer(cfg), args.steps)})
            print(rows[-1], flush=True)
    print(measure.table(rows))
    measure.write(args.out, {"settings": measure.settings(args), "rows": rows})


if __name__ == "__main__":
    main()
