"""Brings a benchmark's files into the form that training reads, and checks its lists.

    python -m prosam_jax.data.prepare pascal --root DIR [--download]
    python -m prosam_jax.data.prepare coco --root DIR [--download]
    python -m prosam_jax.data.prepare folder --root DIR [--annotations SOURCE] [--force | --check]

DIR holds the benchmark's folder or its archives, or will. A run that was interrupted goes on when
the same command is run again, and a second run finds nothing to do.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Iterable, Sequence

from prosam_jax import console
from prosam_jax.data import folds
from prosam_jax.data.datasets import coco, pascal
from prosam_jax.data.prepare import coco as prepare_coco
from prosam_jax.data.prepare import folder as prepare_folder
from prosam_jax.data.prepare import pascal as prepare_pascal

_BENCHMARKS = {
    "pascal": (prepare_pascal.prepare, pascal.OWN_LISTS),
    "coco": (prepare_coco.prepare, coco.OWN_LISTS),
}


def benchmark(name: str, root: pathlib.Path, *, download: bool) -> None:
    """Prepares "pascal" or "coco", and says how its lists compare with the published ones.

    Raises:
        ValueError: Files are missing or damaged.
        OSError: There is not room enough, a file cannot be written, or a download broke.
    """
    prepare, lists = _BENCHMARKS[name]
    folder, was_changed = prepare(root.expanduser(), download=download)
    pools = [folder.ids(pool, "list") for pool in lists]
    ids = list(dict.fromkeys(itertools.chain(*pools)))
    read = 0

    def watch(counts: Iterable[list[int]], total: int) -> Iterable[list[int]]:
        nonlocal read
        read = total
        return console.track(counts, total, "counting pixels")

    counts = folder.pixel_counts(ids, watch)
    if not (was_changed or read):
        print(f"nothing to do: {folder.path} is prepared")
    held = " and ".join(f"{len(ids):,} in {pool}" for pool, ids in zip(lists, pools, strict=True))
    print(f"{folder.path} holds {held}")
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    for fold in range(4):
        verdicts = []
        for split, pool in zip(folds.SPLITS, pools, strict=True):
            index = folder.rule.index(pool, counts[[row_of[i] for i in pool]], fold, split)
            verdicts.append(f"{split} {folds.verdict(index)}")
        print(f"{folder.rule.name} fold {fold}: {'; '.join(verdicts)}")
    if read:  # last, so that a folder that cannot be written to has been compared
        folder.keep_pixel_counts(ids, counts)
    print(f"train with: --config configs/{name}.py --config.data.root={folder.path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m prosam_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("pascal", "VOC 2012 with SBD's masks"), ("coco", "COCO 2014")):
        command = commands.add_parser(name, help=what)
        command.add_argument("--root", type=pathlib.Path, required=True, help="where it lies")
        command.add_argument("--download", action="store_true", help="fetch what is missing")
    own = commands.add_parser("folder", help="pictures and masks of one's own")
    own.add_argument("--root", type=pathlib.Path, required=True, help="where they lie")
    own.add_argument(
        "--annotations", type=pathlib.Path, help="CSV, COCO's JSON or a folder of labelme's files"
    )
    own.add_argument("--force", action="store_true", help="overwrite masks that differ")
    own.add_argument("--check", action="store_true", help="name bad files and write nothing")
    args = parser.parse_args(argv)
    try:
        if args.command == "folder":
            root, source = args.root.expanduser(), args.annotations
            bad = prepare_folder.prepare(root, source, check_only=args.check, force=args.force)
            return int(bad > 0)
        benchmark(args.command, args.root, download=args.download)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; the same command goes on from there", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
