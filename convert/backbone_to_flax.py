"""Converts a backbone's checkpoint; `python convert/backbone_to_flax.py --help` says how."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from prosam_jax.convert.backbone_to_flax import main

if __name__ == "__main__":
    sys.exit(main())
