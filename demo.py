"""`python demo.py` is `prosam demo`; `python demo.py --help` says how it is used."""

import sys

from prosam_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
