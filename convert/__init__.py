"""Commands that turn torch checkpoints into the weight files that prosam_jax reads."""
