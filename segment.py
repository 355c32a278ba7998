"""`python segment.py` is `prosam segment`; `python segment.py --help` says how it is used."""

import sys

from prosam_jax.cli import command

if __name__ == "__main__":
    command(["segment", *sys.argv[1:]])
