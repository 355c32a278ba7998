"""`python train.py` is `prosam train`; `python train.py --help` says how it is used."""

import sys

from prosam_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
