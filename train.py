"""`python train.py` is `prosam train`; `python train.py --help` says how it is used."""

import sys

from prosam_jax.cli import command

if __name__ == "__main__":
    command(["train", *sys.argv[1:]])
