"""Scores a trained prompt encoder on a fixed list of episodes of novel classes.

    prosam evaluate --workdir runs/p1
    prosam evaluate --workdir runs/p1 --checkpoint latest --config.eval.controls
    prosam evaluate --prompt-encoder pascal1.safetensors --config.data.root=VOC2012 --workdir scored

The first two score a checkpoint of a run; the third scores a file made by `prosam export`, a
packaged prompt encoder or a hub repository. The settings are those of the training; a recipe and
the command line can change those that training does not depend on. Writes results.json,
episodes.csv (the pixels of every episode) and examples.png to the workdir. With
--config.eval.controls it also scores what the result should be compared with: no prompt, an
untrained prompt encoder, a reference of a wrong class, and three simpler methods.
"""

import argparse

from prosam_jax.cli import settings
from prosam_jax.cli.arguments import as_path, as_text
from prosam_jax.config import read_config
from prosam_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    parser.add_argument(
        "--workdir",
        type=as_path,
        required=True,
        help="folder of the run, or folder for the results of a file",
    )
    parser.add_argument(
        "--checkpoint", type=as_text, help="best (default), latest or a step of the run"
    )
    parser.add_argument(
        "--prompt-encoder",
        type=as_text,
        metavar="FILE",
        help="trained prompt encoder: a file, a packaged name or USER/NAME on a hub",
    )
    settings.add_arguments(parser, "its settings replace those of the training")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluates a checkpoint of the run in the workdir, or a file."""
    from prosam_jax import runs
    from prosam_jax.weights import pretrained

    workdir, changes = args.workdir, settings.changes(args)
    if args.prompt_encoder is None:
        cfg = runs.settings(read_config(workdir / "config.json"), changes)
        runs.score(cfg, workdir, args.checkpoint or "best")
        return
    if args.checkpoint:
        raise UserError(
            "--checkpoint is for a run and --prompt-encoder for a file: pass only one of them"
        )
    file = pretrained.find(args.prompt_encoder)
    if file.is_dir():
        raise UserError(f"--prompt-encoder={file} is the folder of a run: pass --workdir={file}")
    runs.score_file(runs.settings_of_file(file, changes), workdir)
