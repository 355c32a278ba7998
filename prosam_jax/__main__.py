"""`python -m prosam_jax` is `prosam`."""

import sys

from prosam_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
