"""Makes `python convert/backbone_to_flax.py` the same as `prosam weights convert backbone`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from prosam_jax.cli import command

if __name__ == "__main__":
    command(["weights", "convert", "backbone", *sys.argv[1:]])
