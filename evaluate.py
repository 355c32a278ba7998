"""Scores a trained prompt encoder on a fixed list of episodes of novel classes.

    python evaluate.py --workdir=runs/x [--checkpoint=best|latest|STEP] [--config.NAME=VALUE ...]

Settings are those of the run; the command line changes some of them. Writes `results.json` and
`examples.png` into the workdir.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from prosam_jax import cli
from prosam_jax.config import changed, read_config
from prosam_jax.training.score import FREE, score

config_flags.DEFINE_config_file("config", None, "Names the settings; their values are the run's.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", '"best", "latest" or a step.')


def main() -> None:
    """Evaluates one checkpoint of the run in the workdir."""
    workdir = pathlib.Path(WORKDIR.value)
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    run = read_config(workdir / "config.json")
    cfg = read_config(workdir / "config.json", overrides)
    if differences := changed(run, cfg, FREE):
        raise ValueError(
            f"these settings belong to the run and cannot be changed: {'; '.join(differences)}; "
            f"free are {', '.join(FREE)}"
        )
    score(cfg, workdir, CHECKPOINT.value)


if __name__ == "__main__":
    cli.run(main)
