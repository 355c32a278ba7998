r"""Segments the object of a reference in other pictures.

    prosam segment --reference cat.jpg --mask cat.png --targets photos/ --out masks/
    prosam segment --reference a.jpg --box 120,80,460,400 --reference b.jpg --box 10,20,90,200 \
        --targets photos/ --out masks/ --overlay --prompt-encoder pascal1.safetensors

Annotate the object of the reference with --mask (a picture, white on the object and black
elsewhere), --points "x,y;x,y", --box x0,y0,x1,y1 or --scribble FILE.png, in pixels of the
reference. For several references of one object, repeat --reference and the annotation in the same
order. Writes one mask per target, 0 or 255, with the target's size and name.
"""

import argparse
import sys
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
    add("--reference", **files, required=True, help="picture that shows the object")
    add("--mask", **files, help="mask of the object, white on black")
    add("--points", action="append", metavar="X,Y;X,Y", help="points on the object")
    add("--box", action="append", metavar="X0,Y0,X1,Y1", help="box around the object")
    add("--scribble", **files, help="strokes on the object, white on black")
    add("--targets", **one, required=True, metavar="PATH", help="a picture, or a folder of them")
    add("--out", **one, required=True, metavar="DIR", help="folder for the masks")
    add(
        "--prompt-encoder",
        type=as_text,
        metavar="FILE",
        help="trained prompt encoder: a file, the folder of a run, a packaged name or USER/NAME "
        "on a hub (default: prosam-shapes)",
    )
    add(
        "--overlay",
        action="store_true",
        help="also write the targets with their masks drawn on them",
    )
    add(
        "--uncertainty",
        action="store_true",
        help="also write the entropy of each pixel, white for uncertain",
    )
    add("--json", choices=["coco-rle"], help="also write masks.json, in COCO's format")
    add("--force", action="store_true", help="overwrite existing output files")
    add("--batch-size", type=int, default=4, metavar="N", help="pictures per batch (default: 4)")
    settings.add_arguments(parser, "its settings replace those of the training")
    parser.set_defaults(run=run)


def annotations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The annotation of each reference, as arguments of `Segmenter.add_reference`.

    Raises:
        UserError: There is not one annotation of the same kind for each reference.
    """
    points = [[_numbers("points", xy, 2) for xy in x.split(";")] for x in args.points or ()]
    box = [_numbers("box", x, 4) for x in args.box or ()]
    given = {"mask": args.mask, "points": points, "box": box, "scribble": args.scribble}
    found = [{kind: value} for kind, values in given.items() for value in values or ()]
    kinds = [f"--{kind}" for kind, values in given.items() if values]
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(kinds)} are mixed: annotate all references in the same way")
    if len(found) != len(args.reference):
        raise UserError(
            f"{len(args.reference)} --reference but {len(found)} annotations: pass one --mask, "
            "--points, --box or --scribble for each --reference"
        )
    return found


def _numbers(name: str, text: str, count: int) -> list[float]:
    form = {"points": '"x,y;x,y"', "box": "x0,y0,x1,y1"}[name]
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise UserError(f"--{name}={text!r} is not valid: pass --{name}={form}, in pixels")
    return found


def run(args: argparse.Namespace) -> int:
    """Segments the targets.

    Raises:
        UserError: An argument is not valid, or some targets cannot be read; the others are written.
    """
    from prosam_jax import console, model, segment_files
    from prosam_jax.config import RANDOM, check_at_least
    from prosam_jax.segmenter import Segmenter
    from prosam_jax.weights.pretrained import DEFAULT

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
            f"using {DEFAULT}, which was trained on generated shapes and is only a toy on photos; "
            "--prompt-encoder takes others",
            file=sys.stderr,
        )
    prosam, cfg = model.load(args.prompt_encoder or DEFAULT, settings.changes(args))
    if RANDOM in (cfg.sam.weight_file(), cfg.backbone.weight_file()):
        print("SAM or the backbone has RANDOM weights: the masks are meaningless", file=sys.stderr)
    segmenter = Segmenter(prosam, cfg.data.image_size)
    for reference, annotation in zip(args.reference, found, strict=True):
        segmenter.add_reference(reference, **annotation)
    bad = segment_files.run(segmenter, todo, batch_size=args.batch_size)
    done = len(todo.outputs) - len(bad)
    print(f"wrote {done} mask{'s' * (done != 1)} to {args.out}")
    for path, reason in bad.items():
        named = reason if str(path) in reason else f"{path}: {reason}"
        console.note(f"not segmented: {named}")
    if bad:
        raise UserError(f"{len(bad)} of {len(todo.outputs)} targets could not be read")
    return 0
