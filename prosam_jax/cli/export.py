"""Writes the prompt encoder of a run's checkpoint to one file, with all that is needed to use it.

    prosam export --workdir runs/p1 --out pascal1.safetensors
    prosam weights show pascal1.safetensors

The file holds parameters (7 MB), settings without paths, scores if the checkpoint was evaluated,
and checksums of the frozen weights that it was trained on.
"""

import argparse
import pathlib

from prosam_jax.cli.arguments import as_path, as_text
from prosam_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument("--workdir", type=as_path, required=True, help="folder of the run")
    parser.add_argument("--out", type=as_path, required=True, help="the .safetensors file")
    parser.add_argument(
        "--checkpoint", type=as_text, default="best", help="best (if not given), latest, a step"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Exports."""
    from prosam_jax import share

    check_free(args.out, force=args.force)
    print(share.describe(args.out, share.export(args.workdir, args.checkpoint, args.out)))


def check_free(out: pathlib.Path, *, force: bool) -> None:
    """Raises UserError if a file would be overwritten that is not to be."""
    if out.exists() and not force:
        raise UserError(f"{out} exists already: pass --force, or another --out")
