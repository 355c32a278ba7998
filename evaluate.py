"""`python evaluate.py` is `prosam evaluate`; `python evaluate.py --help` says how it is used."""

import sys

from prosam_jax.cli import command

if __name__ == "__main__":
    command(["evaluate", *sys.argv[1:]])
