"""Prepares a benchmark's files, or your own, for training and checks them.

    prosam prepare pascal --root data/pascal --download
    prosam prepare coco --root data/coco --download
    prosam prepare fss --root data/fss
    prosam prepare folder --root my_data --annotations my_data/labels.csv
    prosam prepare folder --root my_data --check
    prosam prepare tfds pascal --root data/pascal/VOC2012 --data-dir ~/tensorflow_datasets

To resume an interrupted preparation, run the same command again.
"""

import argparse
import sys

from prosam_jax.cli.arguments import as_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    what = parser.add_subparsers(metavar="WHAT")
    for name, title in (("pascal", "VOC 2012 with SBD's masks"), ("coco", "COCO 2014")):
        one = what.add_parser(name, help=title, description=title)
        one.add_argument(
            "--root", type=as_path, required=True, help="where the dataset is or will be"
        )
        one.add_argument("--download", action="store_true", help="fetch what is missing")
        one.set_defaults(run=benchmark, name=name)
    pairs = what.add_parser("fss", help="FSS-1000", description="FSS-1000, from its archive")
    pairs.add_argument(
        "--root", type=as_path, required=True, help="where the classes' folders or the archive are"
    )
    pairs.set_defaults(run=fss)
    own = what.add_parser("folder", help="pictures and masks of your own")
    own.add_argument("--root", type=as_path, required=True, help="your folder")
    own.add_argument(
        "--annotations",
        type=as_path,
        help="what to make masks from: a CSV file, a JSON file of COCO or Label Studio, an XML "
        "file of CVAT, YOLO's data.yaml or a folder of labelme files",
    )
    own.add_argument(
        "--crowds-as-objects",
        action="store_true",
        help="draw COCO's annotations with iscrowd 1 as objects; some tools write 1 for all run "
        "lengths",
    )
    own.add_argument(
        "--preview", type=as_path, metavar="FILE.png", help="write pictures with their masks to it"
    )
    own.add_argument("--force", action="store_true", help="overwrite existing masks that differ")
    own.add_argument("--check", action="store_true", help="only list bad files, write nothing")
    own.set_defaults(run=folder)
    copy = what.add_parser("tfds", help="copy a prepared benchmark to a TFDS data directory")
    copy.add_argument("benchmark", choices=["pascal", "coco"])
    copy.add_argument("--root", type=as_path, required=True, help="folder of the benchmark")
    copy.add_argument("--data-dir", type=as_path, required=True, help="the TFDS data directory")
    copy.add_argument("--lists", nargs="+", default=(), help="lists of ids to copy")
    copy.set_defaults(run=tfds)


def benchmark(args: argparse.Namespace) -> int:
    """Prepares Pascal or COCO; returns the exit status."""
    from prosam_jax.data.prepare import benchmarks

    try:
        benchmarks.prepare(args.name, args.root, download=args.download)
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def fss(args: argparse.Namespace) -> int:
    """Prepares and checks FSS-1000; returns status 1 if it contains bad files."""
    from prosam_jax.data.prepare import fss

    return int(fss.prepare(args.root) > 0)


def folder(args: argparse.Namespace) -> int:
    """Prepares or checks a folder; returns status 1 if it contains bad files."""
    from prosam_jax.data.prepare import folder

    bad = folder.prepare(
        args.root,
        args.annotations,
        check_only=args.check,
        force=args.force,
        crowds_as_objects=args.crowds_as_objects,
        sheet=args.preview,
    )
    return int(bad > 0)


def tfds(args: argparse.Namespace) -> None:
    """Copies a prepared benchmark to a TFDS data directory."""
    from prosam_jax.data.prepare import tfds

    print(tfds.build(args.benchmark, str(args.root), args.data_dir, args.lists))
