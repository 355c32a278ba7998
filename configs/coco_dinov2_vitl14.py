r"""ProSAM on COCO-20i with DINOv2 ViT-L/14 as the backbone.

    prosam train --config coco_dinov2_vitl14 --config.data.root=COCO2014 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/coco_dinov2_vitl140

The paper has no such row. One H200 would take 22 to 43 hours a fold in bfloat16, 6.1 to 12 with a
feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "coco"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"backbone": {"name": "dinov2_vitl14"}}
