r"""ProSAM on Pascal-5i with VRP-SAM's VGG-16, which has batch norm.

    prosam train --config pascal_vgg16 --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_vgg160

The paper reports mIoU 70.53, 75.3, 68.25 and 62.99 for folds 0-3 (Table 9), mean 69.27. Not
reproduced with this library yet. One H200 would take 2.7 to 4.0 hours a fold in bfloat16, 0.20 to
0.29 with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"backbone": {"name": "vgg16_bn"}}
