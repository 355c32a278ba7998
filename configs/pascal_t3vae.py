r"""ProSAM on Pascal-5i with the t-distribution of t3-VAE (arXiv 2312.01133).

    prosam train --config pascal_t3vae --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_t3vae0

The paper has no such row. One H200 would take 2.8 to 4.2 hours a fold in bfloat16, 0.28 to 0.42
with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"distribution": {"name": "t3vae"}}
