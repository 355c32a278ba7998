"""Finds in your pictures what one of them shows.

    prosam segment --reference cat.jpg --mask cat.png --targets photos/ --out masks/
    prosam segment --reference a.jpg --box 120,80,460,400 --reference b.jpg --box 10,20,90,200 \
        --targets photos/ --out masks/ --overlay --prompt-encoder pascal1.safetensors

Instead of --mask, a white-on-black picture of the object, the object can be annotated by
--points "x,y;x,y", --box x0,y0,x1,y1 or --scribble FILE.png, in pixels of the reference. Several
references of one object: repeat --reference and the annotation, in the same order. Writes one mask
for each target, 0 or 255, as large as the target and named after it.
"""

import argparse
import sys
import warnings
from typing import Any

from prosam_jax.cli import settings
from prosam_jax.cli.arguments import as_path, as_text
from prosam_jax.errors import UserError

ANNOTATIONS = ("mask", "points", "box", "scribble")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    add = parser.add_argument
    one: dict[str, Any] = {"type": as_path}
    files: dict[str, Any] = one | {"action": "append", "metavar": "FILE"}
    add("--reference", **files, required=True, help="picture of the object")
    add("--mask", **files, help="the object in it, white on black")
    add("--points", action="append", metavar="X,Y;X,Y", help="points on the object")
    add("--box", action="append", metavar="X0,Y0,X1,Y1", help="a box around the object")
    add("--scribble", **files, help="strokes on it, white on black")
    add("--targets", **one, required=True, metavar="PATH", help="a picture, or a folder of them")
    add("--out", **one, required=True, metavar="DIR", help="folder for the masks")
    add(
        "--prompt-encoder",
        type=as_text,
        metavar="FILE",
        help="trained prompt encoder: file, run's folder, name or USER/NAME (prosam-shapes)",
    )
    add("--overlay", action="store_true", help="also write the targets with the mask on them")
    add("--uncertainty", action="store_true", help="also write maps, white is uncertain")
    add("--json", choices=["coco-rle"], help="also write masks.json, in COCO's format")
    add("--force", action="store_true", help="overwrite masks that are there")
    add("--batch-size", type=int, default=4, metavar="N", help="pictures taken at a time (4)")
    settings.add_arguments(parser, "what it sets is changed from the training's settings")
    parser.set_defaults(run=run)


def annotations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The annotation of each reference, as `Segmenter.add_reference` takes it."""
    points = [[_numbers("points", xy, 2) for xy in x.split(";")] for x in args.points or ()]
    box = [_numbers("box", x, 4) for x in args.box or ()]
    given = {"mask": args.mask, "points": points, "box": box, "scribble": args.scribble}
    found = [{kind: value} for kind, values in given.items() for value in values or ()]
    kinds = [f"--{kind}" for kind, values in given.items() if values]
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(kinds)} are given: annotate all references by one kind")
    if len(found) != len(args.reference):
        raise UserError(
            f"{len(args.reference)} --reference and {len(found)} annotations: give every reference "
            "one --mask, --points, --box or --scribble"
        )
    return found


def _numbers(name: str, text: str, count: int) -> list[float]:
    form = {"points": '"x,y;x,y"', "box": "x0,y0,x1,y1"}[name]
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise UserError(f"--{name} has {text!r}: pass --{name}={form}, in pixels")
    return found


def run(args: argparse.Namespace) -> int:
    """Segments the targets; ends with status 1 if some of them cannot be read."""
    from PIL import Image

    from prosam_jax import model, segment_files
    from prosam_jax.config import RANDOM, check_at_least
    from prosam_jax.segmenter import Segmenter
    from prosam_jax.weights.prompt_encoder import DEFAULT

    # Pillow suspects pictures of 90 to 180 million pixels of an attack; these are the user's own.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    check_at_least("--batch-size", args.batch_size, 1)
    found = annotations(args)
    todo = segment_files.plan(
        args.targets,
        args.out,
        overlay=args.overlay,
        uncertainty=args.uncertainty,
        as_json=args.json is not None,
        force=args.force,
        inputs=[*args.reference, *(args.mask or ()), *(args.scribble or ())],
    )
    if args.prompt_encoder is None:
        print(
            f"using {DEFAULT}: trained on generated shapes, on photos a toy; --prompt-encoder "
            "takes others",
            file=sys.stderr,
        )
    prosam, cfg = model.load(args.prompt_encoder or DEFAULT, settings.changes(args))
    if RANDOM in (cfg.sam.weight_file(), cfg.backbone.weight_file()):
        print("its SAM or its backbone has RANDOM weights: the masks mean nothing", file=sys.stderr)
    segmenter = Segmenter(prosam, cfg.data.image_size)
    for reference, annotation in zip(args.reference, found, strict=True):
        segmenter.add_reference(reference, **annotation)
    bad = segment_files.run(segmenter, todo, batch_size=args.batch_size)
    done = len(todo.outputs) - len(bad)
    print(f"wrote {done} mask{'s' * (done != 1)} to {args.out}")
    for path, reason in bad.items():
        named = reason if str(path) in reason else f"{path}: {reason}"
        print(f"not segmented: {named}", file=sys.stderr)
    if bad:
        raise UserError(f"of {len(todo.outputs)} targets {len(bad)} could not be read")
    return 0
