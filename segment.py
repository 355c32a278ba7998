"""Segments in your pictures what one of them shows.

    python segment.py --reference=cat.jpg --mask=cat.png --targets=photos/ --out=masks/

Instead of --mask, a white-on-black picture of the object, the object can be marked by
--points="x,y;x,y", --box=x0,y0,x1,y1 or --scribble=FILE.png, in pixels of the reference. Several
references of one object: repeat --reference and the mark, in the same order. Writes one mask for
each target, 0 or 255, as large as the target and named after it.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from prosam_jax import cli, segment_files
from prosam_jax.config import check_at_least, check_choice
from prosam_jax.segmenter import DEFAULT, Segmenter

REFERENCE = flags.DEFINE_multi_string("reference", [], "A picture of the object.", required=True)
MASK = flags.DEFINE_multi_string("mask", [], "The object in it, white on black.")
POINTS = flags.DEFINE_multi_string("points", [], 'Points on the object, "x,y;x,y".')
BOX = flags.DEFINE_multi_string("box", [], "A box around the object, x0,y0,x1,y1.")
SCRIBBLE = flags.DEFINE_multi_string("scribble", [], "Strokes on the object, white on black.")
TARGETS = flags.DEFINE_string("targets", None, "A picture, or a folder of them.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the masks.", required=True)
MODEL = flags.DEFINE_string(
    "model", None, "File of a trained prompt encoder, folder of a run, or name of a model."
)
OVERLAY = flags.DEFINE_bool("overlay", False, "Also write the targets with the mask on them.")
UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Also write maps, white is uncertain.")
JSON = flags.DEFINE_string("json", None, '"coco-rle" also writes masks.json.')
FORCE = flags.DEFINE_bool("force", False, "Overwrite masks that are there.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Pictures taken at a time.")
config_flags.DEFINE_config_file("config", None, "Names the settings; their values are the model's.")


def marks() -> list[dict[str, str | list[list[float]] | list[float]]]:
    """The mark of each reference, as `Segmenter.add_reference` takes it."""
    given = {
        "mask": MASK.value,
        "points": [[_numbers("points", xy) for xy in x.split(";")] for x in POINTS.value],
        "box": [_numbers("box", x) for x in BOX.value],
        "scribble": SCRIBBLE.value,
    }
    found = [{kind: value} for kind, values in given.items() for value in values]
    kinds = [f"--{kind}" for kind, values in given.items() if values]
    if len(kinds) != 1 or len(found) != len(REFERENCE.value):
        raise ValueError(
            f"{len(REFERENCE.value)} --reference with {len(found)} marks "
            f"({', '.join(kinds) or 'none'}): pass one --mask, --points, --box or --scribble for "
            "each, all of one kind"
        )
    return found


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{flag}: {text!r} is not numbers with commas") from error


def main() -> None:
    """Segments the targets; ends with status 1 if some of them cannot be read."""
    found = marks()
    check_at_least("--batch_size", BATCH_SIZE.value, 1)
    if JSON.value is not None:
        check_choice("--json", JSON.value, segment_files.JSON_FORMATS)
    todo = segment_files.plan(
        pathlib.Path(TARGETS.value),
        pathlib.Path(OUT.value),
        overlay=OVERLAY.value,
        uncertainty=UNCERTAINTY.value,
        as_json=JSON.value is not None,
        force=FORCE.value,
        inputs=[pathlib.Path(x) for x in (*REFERENCE.value, *MASK.value, *SCRIBBLE.value)],
    )
    if MODEL.value is None:
        print(
            f"no --model given: using {DEFAULT}, which comes with the package. It was trained on "
            "generated shapes; on photos it is a toy."
        )
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    segmenter = Segmenter.load(MODEL.value or DEFAULT, overrides)
    for reference, mark in zip(REFERENCE.value, found, strict=True):
        segmenter.add_reference(reference, **mark)
    bad = segment_files.run(segmenter, todo, batch_size=BATCH_SIZE.value)
    print(f"wrote {len(todo.outputs) - len(bad)} masks to {OUT.value}")
    for path, reason in bad.items():
        print(f"not segmented: {path}: {reason}", file=sys.stderr)
    if bad:
        cli.fail(f"{len(bad)} of {len(todo.outputs)} targets could not be read")


if __name__ == "__main__":
    cli.run(main)
