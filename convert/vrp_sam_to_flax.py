"""Converts a checkpoint of VRP-SAM or ProSAM; see `python convert/vrp_sam_to_flax.py --help`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from prosam_jax.convert.vrp_sam_to_flax import main

if __name__ == "__main__":
    sys.exit(main())
