"""`python demo.py` is `prosam demo`; `python demo.py --help` says how it is used."""

import sys

from prosam_jax.cli import command

if __name__ == "__main__":
    command(["demo", *sys.argv[1:]])
