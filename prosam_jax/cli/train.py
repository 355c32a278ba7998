"""Trains a prompt encoder, or resumes the run in a folder.

    prosam train --config pascal --config.data.root=VOC2012 --config.data.fold=1 --workdir runs/p1
    prosam train --config my_recipe.py --prompt-encoder pascal1.safetensors --workdir runs/tuned

    prosam train --workdir runs/p1

A run that was stopped goes on with the same command, or with its --workdir alone. Ctrl-C,
SIGTERM and a terminal that is closed stop it after it has saved.
"""

import argparse

from prosam_jax.cli import settings
from prosam_jax.cli.arguments import as_path, as_text
from prosam_jax.config import read_config, replaced
from prosam_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument(
        "--workdir",
        type=as_path,
        required=True,
        help="folder of the run: a new one, or one to resume",
    )
    parser.add_argument(
        "--prompt-encoder",
        type=as_text,
        metavar="FILE",
        help="trained prompt encoder to start from: a file, a packaged name or USER/NAME on a hub",
    )
    settings.add_arguments(
        parser, "default: that of the run in the workdir, else the paper's for Pascal-5i"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Trains."""
    from prosam_jax.training import loop
    from prosam_jax.weights import pretrained

    if args.prompt_encoder:
        if "prompt.weights" in args.overrides:
            raise UserError(
                "--prompt-encoder is the setting prompt.weights: pass it or "
                "--config.prompt.weights, not both"
            )
        args.overrides["prompt.weights"] = str(pretrained.find_file(args.prompt_encoder))
    recorded = args.workdir / "config.json"
    if args.config is None and recorded.is_file():
        cfg = replaced(read_config(recorded), args.overrides)
    else:
        cfg = settings.config(args)
    loop.train(cfg, args.workdir)
