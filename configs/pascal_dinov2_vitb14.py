r"""ProSAM on Pascal-5i with DINOv2 ViT-B/14 as the backbone.

    prosam train --config pascal_dinov2_vitb14 --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_dinov2_vitb140

The paper has no such row. One H200 would take 2.9 to 4.2 hours a fold in bfloat16, 0.33 to 0.49
with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"backbone": {"name": "dinov2_vitb14"}}
