"""Writes the prompt encoder of a run's checkpoint to one file, with everything needed to use it.

    prosam export --workdir runs/p1 --out pascal1.safetensors
    prosam weights show pascal1.safetensors

The file contains the parameters (7 MB), the settings without paths, the scores if the checkpoint
was evaluated, and checksums of the frozen weights that it was trained with.
"""

import argparse
import pathlib

from prosam_jax.atomic import check_file
from prosam_jax.cli.arguments import as_path, as_text
from prosam_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument("--workdir", type=as_path, required=True, help="folder of the run")
    parser.add_argument("--out", type=as_path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--checkpoint", type=as_text, default="best", help="best (default), latest or a step"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports the checkpoint and prints what the file contains."""
    from prosam_jax import share

    check_free(args.out, force=args.force)
    print(share.describe(args.out, share.export(args.workdir, args.checkpoint, args.out)))


def check_free(out: pathlib.Path, *, force: bool) -> None:
    """Raises UserError if `out` exists, unless `force` is set; OSError if it is no file."""
    check_file(out)
    if out.exists() and not force:
        raise UserError(f"{out} exists already: pass --force, or another --out")
