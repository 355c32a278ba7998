"""Trains a prompt encoder, or resumes the run in a folder.

    prosam train --config pascal --config.data.root=VOC2012 --config.data.fold=1 --workdir runs/p1
    prosam train --config my_recipe.py --prompt-encoder pascal1.safetensors --workdir runs/tuned

Run it again with the same --workdir to resume. Ctrl-C and SIGTERM stop it after it has saved.
"""

import argparse
import pathlib
import sys

from prosam_jax.cli import settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument(
        "--workdir", required=True, help="folder of the run: a new one, or one to resume"
    )
    parser.add_argument(
        "--prompt-encoder",
        metavar="FILE",
        help="trained prompt encoder to start from (sets prompt.weights)",
    )
    settings.add_arguments(parser, "default: the paper's settings for Pascal-5i")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    from prosam_jax.training import loop
    from prosam_jax.training.signals import Stopped

    if args.prompt_encoder:
        args.overrides.setdefault("prompt.weights", args.prompt_encoder)
    cfg = settings.config(args)
    try:
        loop.train(cfg, pathlib.Path(args.workdir).expanduser())
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    return 0
