r"""ProSAM on COCO-20i with DINOv2 ViT-B/14 as the backbone.

    prosam train --config coco_dinov2_vitb14 --config.data.root=COCO2014 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/coco_dinov2_vitb140

The paper reports mIoU 54.49, 60.57, 61.81 and 59.8 for folds 0-3 (Table 5), mean 59.16. Not
reproduced with this library yet. One H200 would take 18 to 35 hours a fold in bfloat16, 2.1 to 4.2
with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "coco"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"backbone": {"name": "dinov2_vitb14"}}
