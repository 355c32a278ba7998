"""Scores a trained prompt encoder on a fixed list of episodes of novel classes.

    prosam evaluate --workdir runs/p1
    prosam evaluate --workdir runs/p1 --checkpoint latest --config.eval.controls
    prosam evaluate --prompt-encoder pascal1.safetensors --config.data.root=VOC2012 --workdir scored

The first two score a checkpoint of a run, the third a file of `prosam export`, a name or a
repository of a hub. Settings are those of the training; --config and the command line change those
that do not belong to it. Writes results.json and examples.png into the workdir. With
--config.eval.controls it also scores what the result is to be measured against: no prompt, an
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
        help="folder of a run, or where the results of a file go",
    )
    parser.add_argument(
        "--checkpoint", type=as_text, help="best (if not given), latest or a step of the run"
    )
    parser.add_argument(
        "--prompt-encoder",
        type=as_text,
        metavar="FILE",
        help="trained prompt encoder: file, name or USER/NAME",
    )
    settings.add_arguments(parser, "what it sets is changed from the training's settings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluates one checkpoint of the run in the workdir, or a file."""
    from prosam_jax import runs
    from prosam_jax.weights import prompt_encoder

    workdir, changes = args.workdir, settings.changes(args)
    if args.prompt_encoder is None:
        cfg = runs.settings(read_config(workdir / "config.json"), changes)
        runs.score(cfg, workdir, args.checkpoint or "best")
        return
    if args.checkpoint:
        raise UserError("--checkpoint picks from a run, --prompt-encoder is a file: pass one only")
    file = prompt_encoder.find(args.prompt_encoder)
    if file.is_dir():
        raise UserError(f"--prompt-encoder={file} is the folder of a run: pass --workdir={file}")
    runs.score_file(runs.settings_of_file(file, changes), workdir)
