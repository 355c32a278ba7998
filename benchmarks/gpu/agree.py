"""Whether this machine computes what a CPU did: masks, logits and the losses of a training.

    python -m benchmarks.gpu.agree              # compares with the digits recorded on a CPU
    python -m benchmarks.gpu.agree --record     # records them

With the packaged networks: the `Segmenter` on pictures of Shapes-5i, and 30 steps of the training
that `configs/shapes.py` describes, both with products in full precision. Beside it, the error of
lower precisions.
"""

import argparse
import importlib.util
import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from prosam_jax import Segmenter, model, sharding
from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.loader import make_loader
from prosam_jax.training import loop

OUT = pathlib.Path("runs/benchmarks/agree.json")
RECORD = pathlib.Path(__file__).with_name("cpu.npz")
RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "shapes.py"
STEPS, PICTURES = 30, 8
MASKS, LOSSES = 0.999, 1e-3  # pixels that must agree, and relative difference of losses
PRECISIONS = {  # name: (precision of products, type of SAM's activations)
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("highest", "bfloat16"),
}


def recipe() -> dict[str, Any]:
    """The settings in `configs/shapes.py`."""
    spec = importlib.util.spec_from_file_location("recipe", RECIPE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def segmented() -> np.ndarray:
    """Masks that the packaged model finds in test pictures, (PICTURES, h, w)."""
    seg = Segmenter.from_pretrained()
    source = datasets.episodes(Config.from_dict(recipe()).data, "test", seed=0, length=PICTURES)
    masks = []
    for episode in make_loader(source, batch_size=1):
        seg.set_reference(episode.reference_image[0, 0], mask=episode.reference_mask[0, 0])
        masks.append(seg.segment(episode.target_image[0]).masks[0])
    return np.stack(masks)


def logits(dtype: str) -> np.ndarray:
    """Logits of the packaged model for the same pictures, (PICTURES, h, w)."""
    prosam, cfg = model.load("prosam-shapes", {"sam.dtype": dtype})
    source = datasets.episodes(cfg.data, "test", seed=0, length=PICTURES)
    episode = next(make_loader(source, batch_size=PICTURES))
    return np.asarray(jax.jit(model.ProSAM.predict)(prosam, episode), np.float32)


def trained() -> tuple[np.ndarray, float]:
    """Losses of the first steps, and the seconds that the first one took with its compilation."""
    changes = recipe()
    changes["train"] |= {"steps": STEPS}
    changes["eval"] |= {"episodes": 1}
    trainer = loop.Trainer(Config.from_dict(changes))
    losses, first = [], 0.0
    for episode in make_loader(trainer.source, batch_size=2, stop=STEPS):
        began = time.perf_counter()
        batch = sharding.split_batch(episode, trainer.mesh)
        trainer.state, logs = trainer.train_step(trainer.state, trainer.frozen, batch)
        losses.append(float(logs["loss"]))
        first = first or time.perf_counter() - began
    return np.array(losses), first


def main() -> None:
    """Compares and writes, or records.

    Raises:
        SystemExit: Something differs by more than is allowed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    print(measure.surroundings(), flush=True)
    jax.config.update("jax_default_matmul_precision", "highest")
    began = time.perf_counter()
    masks = segmented()
    print(f"{PICTURES} pictures: {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    losses, first = trained()
    print(
        f"{STEPS} steps: {time.perf_counter() - began:.1f} s, {first:.1f} s the first", flush=True
    )
    if args.record:
        np.savez_compressed(
            RECORD, masks=np.packbits(masks), losses=losses, logits=logits("float32")[:, ::4, ::4]
        )
        print(f"wrote {RECORD}")
        return
    record = np.load(RECORD)
    same = float((masks == np.unpackbits(record["masks"]).reshape(masks.shape)).mean())
    apart = float(np.abs(losses / record["losses"] - 1).max())
    print(f"{same:.4%} of the masks' pixels agree, losses to {apart:.1e}", flush=True)
    rows = []
    for name, (precision, dtype) in PRECISIONS.items():
        with jax.default_matmul_precision(precision):
            found = logits(dtype)[:, ::4, ::4]
        wanted = record["logits"]
        rows.append(
            {
                "precision": name,
                "logits apart": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
                "pixels that agree": float(((found > 0) == (wanted > 0)).mean()),
            }
        )
        print(rows[-1], flush=True)
    result = {
        "masks agree": same,
        "losses apart": apart,
        "losses": losses.tolist(),
        "first step s": first,
        "precisions": rows,
    }
    measure.write(args.out, result)
    if not (same >= MASKS and apart <= LOSSES):
        raise SystemExit(f"error: masks must agree in {MASKS:.1%} of pixels, losses to {LOSSES}")


if __name__ == "__main__":
    main()
