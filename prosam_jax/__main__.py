"""Makes `python -m prosam_jax` the same as the command `prosam`."""

from prosam_jax.cli import command

if __name__ == "__main__":
    command()
