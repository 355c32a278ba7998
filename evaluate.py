"""Scores a trained prompt encoder on a fixed list of episodes of novel classes.

    python evaluate.py --workdir=runs/x [--checkpoint=best|latest|STEP] [--config.NAME=VALUE ...]
    python evaluate.py --prompt_encoder=FILE --workdir=DIR [--config.NAME=VALUE ...]

The first form scores a checkpoint of a run, the second a file that `python -m
prosam_jax.prompt_file` exported or fetched. Settings are those of the training; the command line
changes some of them. Writes `results.json` and `examples.png` into the workdir. With
`--config.eval.controls=True` it also scores what the result is to be measured against: no prompt,
an untrained prompt encoder, a reference of a wrong class, and three simpler methods.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from prosam_jax import cli, runs
from prosam_jax.config import read_config

config_flags.DEFINE_config_file("config", None, "Names the settings; their values are the run's.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a training run, or where the results of a file go.", required=True
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", '"best", "latest" or a step.')
PROMPT_ENCODER = flags.DEFINE_string("prompt_encoder", None, "A trained prompt encoder's file.")


def main() -> None:
    """Evaluates one checkpoint of the run in the workdir, or a file."""
    workdir = pathlib.Path(WORKDIR.value).expanduser()
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    if PROMPT_ENCODER.value is None:
        cfg = runs.settings(read_config(workdir / "config.json"), overrides)
        runs.score(cfg, workdir, CHECKPOINT.value)
    elif CHECKPOINT.present:
        raise ValueError("--checkpoint picks from a run, --prompt_encoder is a file: pass one only")
    else:
        cfg = runs.settings_of_file(pathlib.Path(PROMPT_ENCODER.value), overrides)
        runs.score_file(cfg, workdir)


if __name__ == "__main__":
    cli.run(main)
