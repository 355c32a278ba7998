r"""ProSAM on Pascal-5i with DINOv2 ViT-L/14 as the backbone.

    prosam train --config pascal_dinov2_vitl14 --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_dinov2_vitl140

The paper has no such row. One H200 would take 3.5 to 5.2 hours a fold in bfloat16, 0.98 to 1.4 with
a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"backbone": {"name": "dinov2_vitl14"}}
