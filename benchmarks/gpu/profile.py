"""The ten kernels that take most of a training step and of SAM's image encoder, from a profile.

python -m benchmarks.gpu.profile --sam vit_h --backbone resnet50 [--dtype bfloat16]
"""

import argparse
import collections
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import measure
from benchmarks.episodes import covered, events
from benchmarks.input import settings
from benchmarks.loader import write_pictures
from prosam_jax import sharding
from prosam_jax.config import BACKBONES, DTYPES, SAM_MODELS
from prosam_jax.data.loader import make_loader
from prosam_jax.model import embed
from prosam_jax.sam.build_sam import build_sam
from prosam_jax.training import loop

OUT = pathlib.Path("runs/benchmarks/profile.json")
CALLS, MOST = 3, 10


def kernels(call: Callable[[], Any]) -> dict[str, Any]:
    """Busy share and the longest kernels of some calls, with their shares of all kernels' time."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                jax.block_until_ready(call())
        found = list(events(pathlib.Path(folder)))
    total: dict[str, float] = collections.defaultdict(float)
    for name, start, stop in found:
        total[name] += stop - start
    longest = sorted(total.items(), key=lambda x: -x[1])[:MOST]
    whole = sum(total.values())
    return {
        "kernel ms per call": whole / CALLS / 1e6,
        "busy share": covered([(start, stop) for _, start, stop in found]),
        "kernels": [
            {"kernel": name[:90], "ms": spent / CALLS / 1e6, "share": spent / whole}
            for name, spent in longest
        ],
    }


def main() -> None:
    """Profiles and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", choices=SAM_MODELS, default="tiny")
    parser.add_argument("--backbone", choices=BACKBONES, default="tiny")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    args.steps = 10
    result: dict[str, Any] = {"settings": measure.settings(args)}
    with tempfile.TemporaryDirectory() as root:
        write_pictures(pathlib.Path(root) / "voc")
        cfg = settings(args, str(pathlib.Path(root) / "voc"), args.dtype, "")
        trainer = loop.Trainer(cfg)
        episode = next(make_loader(trainer.source, batch_size=args.batch, stop=1))
    batch = sharding.split_batch(episode, trainer.mesh)

    def step() -> Any:
        trainer.state, logs = trainer.train_step(trainer.state, trainer.frozen, batch)
        return logs

    sam = sharding.replicate(build_sam(cfg.sam, cfg.seed), trainer.mesh)
    encode = jax.jit(embed)
    calls = {"training step": step, "encoder": lambda: encode(sam, batch.target_image)}
    for name, call in calls.items():
        result[name] = kernels(call)
        figures = {k: v for k, v in result[name].items() if k != "kernels"}
        print(name, figures, measure.table(result[name]["kernels"]), sep="\n", flush=True)
        measure.write(args.out, result)


if __name__ == "__main__":
    main()
