"""Masks of everything in a picture, by `segment_anything` and by this library in turns.

    python -m benchmarks.automatic_masks [--points=32] [--picture 240 320] [--crops=1]
    python -m benchmarks.automatic_masks --model=vit_b --size=512 --points=8 --picture 480 640

Both take the same picture and the same weights: those of the packaged SAM ("shapes"), or random
ones for other models, whose masks are noise. The whole call is timed: embedding the picture,
clicks, filters, run lengths. Thresholds are set so that about the share `--keep` of all masks
passes each of the two. Before anything is timed, the masks are compared: all that pass the
thresholds, and those without duplicates.
"""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import measure
from prosam_jax.config import SAM_MODELS, SAMConfig

OUT = pathlib.Path("runs/benchmarks/automatic_masks.json")
SEED = 0
UNFILTERED = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
DUPLICATES = {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
SUPPRESSED = {"box_nms_thresh": 0.7, "crop_nms_thresh": 0.7}
TOLERANCE = {"share of a mask's pixels": 1e-4, "IoU": 1e-4}
"""The most that the libraries may differ by."""


class Side:
    """A library's generator and the picture; both libraries name things alike."""

    def __init__(self, generator: Any, picture: np.ndarray):
        self.generator = generator
        self.picture = picture

    def set(self, values: Mapping[str, float]) -> None:
        """Sets attributes of the generator."""
        vars(self.generator).update(values)

    def records(self) -> list[dict[str, Any]]:
        """The masks."""
        return self.generator.generate(self.picture)

    def timing(self) -> measure.Timing:
        """Time of finding them."""
        return measure.timed(self.records)

    def peak(self) -> int:
        """Peak bytes of the process."""
        return measure.process_peak()


def architecture(args: argparse.Namespace) -> SAMConfig:
    """The SAM that the arguments describe."""
    cfg = SAMConfig.named(args.model)
    return dataclasses.replace(cfg, image_size=(args.size, args.size)) if args.size else cfg


def picture(args: argparse.Namespace) -> np.ndarray:
    """A picture of Shapes-5i, cut to the size."""
    from prosam_jax.data.datasets.shapes import KINDS, SCENE_SEED, scene

    height, width = args.picture
    return scene((SCENE_SEED, SEED), KINDS[:8], max(height, width))[0][:height, :width]


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of both generators."""
    return {
        "points_per_side": args.points,
        "points_per_batch": args.batch,
        "crop_n_layers": args.crops,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 0,
        "output_mode": "uncompressed_rle",
    }


def torch_side(args: argparse.Namespace, folder: str) -> Side:
    """`segment_anything`'s."""
    import torch

    from benchmarks import pytorch
    from torch_models import sam

    pytorch.set_up()
    twin = sam.build(architecture(args), SEED)
    twin.load_state_dict(torch.load(f"{folder}/torch.pt"))
    from segment_anything import SamAutomaticMaskGenerator

    return Side(SamAutomaticMaskGenerator(twin, **settings(args)), picture(args))


def our_side(args: argparse.Namespace, folder: str) -> Side:
    """This library's."""
    from benchmarks import ours
    from prosam_jax import SamAutomaticMaskGenerator
    from prosam_jax.sam import Sam

    cfg = architecture(args)
    sam = ours.load(lambda rngs: Sam(cfg, rngs=rngs), f"{folder}/ours.safetensors")
    return Side(SamAutomaticMaskGenerator(sam, **settings(args)), picture(args))


def write(args: argparse.Namespace, folder: str) -> None:
    """Writes the weights for both."""
    import torch

    from benchmarks import converted
    from prosam_jax import SamPredictor
    from prosam_jax.convert.rules.sam import META_RULES
    from prosam_jax.sam import Sam
    from torch_models import sam

    cfg = architecture(args)
    if args.model == "shapes":
        twin = sam.of_jax(SamPredictor.from_pretrained("sam_shapes").model)
    else:
        twin = sam.build(cfg, SEED)
        # Random IoU are around 0, and both libraries filter by thresholds above 0 only.
        last = twin.mask_decoder.iou_prediction_head.layers[-1]
        torch.nn.init.constant_(last.bias, 5)  # pyright: ignore[reportArgumentType]
    torch.save(twin.state_dict(), f"{folder}/torch.pt")
    file = f"{folder}/ours.safetensors"
    converted.write(twin, functools.partial(_built, Sam, cfg), META_RULES, (), file)


def _built(kind: Any, cfg: SAMConfig, rngs: Any) -> Any:
    return kind(cfg, rngs=rngs)


def middle(values: np.ndarray, share: float) -> float:
    """A threshold above which about `share` of the values lie, not close to any of them."""
    values = np.unique(values[np.isfinite(values)])
    at = np.clip(int((1 - share) * len(values)), 1, len(values) - 1)
    near = np.arange(max(at - 5, 1), min(at + 6, len(values)))
    best = near[np.argmax(values[near] - values[near - 1])]
    return float(values[best - 1] + values[best]) / 2


def compare(
    found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """How far the records are from those of `segment_anything`.

    Raises:
        ValueError: Their number, clicks or order differ, or a mask or its IoU by more than
            `TOLERANCE`.
    """
    from prosam_jax.run_lengths import mask_of

    order, theirs = ([(x["point_coords"], x["crop_box"]) for x in y] for y in (found, wanted))
    if order != theirs:
        raise ValueError(f"{len(found)} masks are not the {len(wanted)} of segment_anything")
    equal, share, iou = 0, 0.0, 0.0
    for one, other in zip(found, wanted, strict=True):
        iou = max(iou, abs(one["predicted_iou"] - other["predicted_iou"]))
        masks = [x["segmentation"] for x in (one, other)]
        if masks[0] == masks[1]:
            equal += one["bbox"] == other["bbox"]
        else:
            x, y = (mask_of(mask["counts"], mask["size"]) for mask in masks)
            share = max(share, float((x != y).mean()))
    if not (share <= TOLERANCE["share of a mask's pixels"] and iou <= TOLERANCE["IoU"]):
        raise ValueError(f"masks differ by {share:.1e} of their pixels, their IoU by {iou:.1e}")
    return {"masks": len(found), "equal masks": equal, "pixels": share, "IoU": iou}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compares, measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SAM_MODELS, default="shapes")
    parser.add_argument("--size", type=int, help="side of the encoder's input; not for shapes")
    parser.add_argument("--picture", type=int, nargs=2, default=(240, 320), help="height, width")
    parser.add_argument("--points", type=int, default=32, help="along each side")
    parser.add_argument("--batch", type=int, default=64, help="clicks at a time")
    parser.add_argument("--crops", type=int, default=0, help="layers of crops")
    parser.add_argument("--keep", type=float, default=0.2, help="share above each threshold")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args(argv)
    if args.model == "shapes" and args.size:
        parser.error("--size: the packaged SAM has its own")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measure.Alone(write, args, folder).close()
        sides = {
            "segment_anything": measure.Alone(torch_side, args, folder),
            "prosam_jax": measure.Alone(our_side, args, folder),
        }
        for side in sides.values():
            stack.callback(side.close)
        ours, theirs = sides["prosam_jax"], sides["segment_anything"]
        ours("set", UNFILTERED | DUPLICATES)
        every = ours("records")
        thresholds = {
            limit: middle(np.array([x[name] for x in every]), args.keep)
            for limit, name in zip(UNFILTERED, ("predicted_iou", "stability_score"), strict=True)
        }
        differences = {}
        for name, limits in (("with duplicates", DUPLICATES), ("without", SUPPRESSED)):
            for side in sides.values():
                side("set", thresholds | limits)
            differences[name] = compare(ours("records"), theirs("records"))
            print(f"{name}: {differences[name]}", flush=True)
        figures = measure.in_turns(
            {name: functools.partial(side, "timing") for name, side in sides.items()},
            args.turns,
            lambda n: print(f"turn {n}", flush=True),
        )
        peaks = {name: side("peak") for name, side in sides.items()}
    clicks = len(every) // 3
    first = figures["segment_anything"]
    rows = []
    for name, timings in figures.items():
        wall, cpu = ([getattr(x, kind) for x in timings] for kind in ("seconds", "cpu_seconds"))
        others = ([getattr(x, kind) for x in first] for kind in ("seconds", "cpu_seconds"))
        over, over_cpu = map(measure.ratio, (wall, cpu), others)
        rows.append(
            {
                "": name,
                "points per second": measure.spread([clicks / x for x in wall]),
                "seconds": measure.spread(wall),
                "over segment_anything": over,
                "CPU seconds": measure.spread(cpu),
                "CPU over segment_anything": over_cpu,
                "peak GB": peaks[name] / 1e9,
            }
        )
    print(measure.table(rows))
    result = {
        "settings": measure.settings(args),
        "thresholds": thresholds,
        "differences": differences,
        "sides": [
            {k: x._asdict() if isinstance(x, measure.Spread) else x for k, x in row.items()}
            for row in rows
        ],
    }
    measure.write(args.out, result)
    return result


if __name__ == "__main__":
    main()
