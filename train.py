"""Trains the prompt encoder.

    python train.py --config configs/pascal.py --config.data.root=DIR --workdir=runs/x

Any setting of the config can be given as `--config.GROUP.NAME=VALUE`; `prosam_jax/config.py` has
them all. Started again with the same
workdir it goes on where it was.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from prosam_jax import cli
from prosam_jax.config import Config
from prosam_jax.training import loop, signals

pass

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, pascal.py if none.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: a new one, or one to go on with.", required=True
)


def main() -> None:
    """Trains, or goes on with the run in the workdir."""
    try:
        loop.train(Config.from_dict(CONFIG.value), pathlib.Path(WORKDIR.value).expanduser())
    except signals.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(128 + stopped.signum)


if __name__ == "__main__":
    cli.run(main)
