"""Makes `python -m prosam_jax` the same as the command `prosam`."""

import sys

from prosam_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
