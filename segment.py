"""Segments in your pictures what one of them shows.

    python segment.py --reference=cat.jpg --mask=cat.png --targets=photos/ --out=masks/

Instead of --mask, a white-on-black picture of the object, the object can be marked by
--points="x,y;x,y", --box=x0,y0,x1,y1 or --scribble=FILE.png, in pixels of the reference. Several
references of one object: repeat --reference and the mark, in the same order. Writes one mask for
each target, 0 or 255, as large as the target and named after it.
"""

import os
import pathlib
import sys
import warnings
from typing import Any

from absl import flags
from ml_collections import config_flags
from PIL import Image

from prosam_jax import cli, segment_files, trained
from prosam_jax.config import RANDOM
from prosam_jax.segmenter import Segmenter
from prosam_jax.trained import DEFAULT

REFERENCE = flags.DEFINE_multi_string("reference", None, "A picture of the object.", required=True)
MASK = flags.DEFINE_multi_string("mask", [], "The object in it, white on black.")
POINTS = flags.DEFINE_multi_string("points", [], 'Points on the object, "x,y;x,y".')
BOX = flags.DEFINE_multi_string("box", [], "A box around the object, x0,y0,x1,y1.")
SCRIBBLE = flags.DEFINE_multi_string("scribble", [], "Strokes on the object, white on black.")
TARGETS = flags.DEFINE_multi_string(
    "targets", None, "A picture, or a folder of them.", required=True
)
OUT = flags.DEFINE_string("out", None, "Folder for the masks.", required=True)
MODEL = flags.DEFINE_string(
    "model", None, "File of a trained prompt encoder, folder of a run, or name of a model."
)
OVERLAY = flags.DEFINE_bool("overlay", False, "Also write the targets with the mask on them.")
UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Also write maps, white is uncertain.")
JSON = flags.DEFINE_enum("json", None, ["coco-rle"], "Also write masks.json, in COCO's format.")
FORCE = flags.DEFINE_bool("force", False, "Overwrite masks that are there.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Pictures taken at a time.", lower_bound=1)
config_flags.DEFINE_config_file("config", None, "Names the settings; their values are the model's.")


def marks() -> list[dict[str, Any]]:
    """The mark of each reference, as `Segmenter.add_reference` takes it."""
    points = [[_numbers("points", xy, 2) for xy in x.split(";")] for x in POINTS.value]
    box = [_numbers("box", x, 4) for x in BOX.value]
    given = {"mask": _paths(MASK), "points": points, "box": box, "scribble": _paths(SCRIBBLE)}
    found = [{kind: value} for kind, values in given.items() for value in values]
    kinds = [f"--{kind}" for kind, values in given.items() if values]
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(kinds)} are given: mark all references by one kind")
    if len(found) != len(REFERENCE.value):
        raise ValueError(
            f"{len(REFERENCE.value)} --reference and {len(found)} marks: give every reference "
            "one --mask, --points, --box or --scribble"
        )
    return found


def _paths(flag: flags.FlagHolder) -> list[pathlib.Path]:
    return [pathlib.Path(x).expanduser() for x in flag.value]


def _numbers(name: str, text: str, count: int) -> list[float]:
    form = {"points": '"x,y;x,y"', "box": "x0,y0,x1,y1"}[name]
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise ValueError(f"--{name} has {text!r}: pass --{name}={form}, in pixels")
    return found


def main() -> None:
    """Segments the targets; ends with status 1 if some of them cannot be read."""
    # Pillow suspects pictures of 90 to 180 million pixels of an attack; these are the user's own.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    found, references, targets = marks(), _paths(REFERENCE), _paths(TARGETS)
    if len(targets) > 1:
        raise ValueError(f"{len(targets)} --targets: pass one picture, or one folder of pictures")
    todo = segment_files.plan(
        targets[0],
        pathlib.Path(OUT.value).expanduser(),
        overlay=OVERLAY.value,
        uncertainty=UNCERTAINTY.value,
        as_json=JSON.value is not None,
        force=FORCE.value,
        inputs=[*references, *_paths(MASK), *_paths(SCRIBBLE)],
    )
    if MODEL.value is None:
        print(
            f"using {DEFAULT}: trained on generated shapes, on photos a toy; --model takes others"
        )
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    model, cfg = trained.load(os.path.expanduser(MODEL.value or DEFAULT), overrides)
    if RANDOM in (cfg.sam.weight_file(), cfg.backbone.weight_file()):
        print("its SAM or its backbone has RANDOM weights: the masks mean nothing")
    segmenter = Segmenter(model, cfg.data.image_size)
    for reference, mark in zip(references, found, strict=True):
        segmenter.add_reference(reference, **mark)
    bad = segment_files.run(segmenter, todo, batch_size=BATCH_SIZE.value)
    done = len(todo.outputs) - len(bad)
    print(f"wrote {done} mask{'s' * (done != 1)} to {OUT.value}")
    for path, reason in bad.items():
        named = reason if str(path) in reason else f"{path}: {reason}"
        print(f"not segmented: {named}", file=sys.stderr)
    if bad:
        cli.fail(f"of {len(todo.outputs)} targets {len(bad)} could not be read")


if __name__ == "__main__":
    cli.run(main)
