"""Brings a benchmark's files, or your own, into the form that training reads, and checks them.

    prosam prepare pascal --root data/pascal --download
    prosam prepare coco --root data/coco --download
    prosam prepare folder --root my_data --annotations my_data/labels.csv
    prosam prepare folder --root my_data --check
    prosam prepare tfds pascal --root data/pascal/VOC2012 --data-dir ~/tensorflow_datasets

A preparation that was interrupted goes on when the same command is run again, and a second one
finds nothing to do.
"""

import argparse
import sys

from prosam_jax.cli.arguments import as_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    what = parser.add_subparsers(metavar="WHAT", required=True)
    for name, title in (("pascal", "VOC 2012 with SBD's masks"), ("coco", "COCO 2014")):
        one = what.add_parser(name, help=title, description=title)
        one.add_argument("--root", type=as_path, required=True, help="where it lies, or shall")
        one.add_argument("--download", action="store_true", help="fetch what is missing")
        one.set_defaults(run=benchmark, name=name)
    own = what.add_parser("folder", help="pictures and masks of your own")
    own.add_argument("--root", type=as_path, required=True, help="where they lie")
    own.add_argument(
        "--annotations", type=as_path, help="CSV, COCO's JSON or a folder of labelme's files"
    )
    own.add_argument("--force", action="store_true", help="overwrite masks that differ")
    own.add_argument("--check", action="store_true", help="name bad files and write nothing")
    own.set_defaults(run=folder)
    copy = what.add_parser("tfds", help="a prepared benchmark as a TFDS data directory")
    copy.add_argument("benchmark", choices=["pascal", "coco"])
    copy.add_argument("--root", type=as_path, required=True, help="folder of the benchmark")
    copy.add_argument("--data-dir", type=as_path, required=True, help="where TFDS keeps all")
    copy.add_argument("--lists", nargs="+", default=(), help="lists of ids (the benchmark's own)")
    copy.set_defaults(run=tfds)


def benchmark(args: argparse.Namespace) -> int:
    """Prepares Pascal or COCO."""
    from prosam_jax.data.prepare import benchmarks

    try:
        benchmarks.prepare(args.name, args.root, download=args.download)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def folder(args: argparse.Namespace) -> int:
    """Prepares or checks a folder; status 1 if it holds bad files."""
    from prosam_jax.data.prepare import folder

    bad = folder.prepare(args.root, args.annotations, check_only=args.check, force=args.force)
    return int(bad > 0)


def tfds(args: argparse.Namespace) -> None:
    """Copies a prepared benchmark."""
    from prosam_jax.data.prepare import tfds

    print(tfds.build(args.benchmark, str(args.root), args.data_dir, args.lists))
