r"""ProSAM on Pascal-5i, as in section 5.1 of the paper.

    prosam train --config pascal --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal0

All other settings are at their defaults, which follow the paper: ViT-H, the deep-stem ResNet-50, 50
prompts, Student-t with 5 degrees of freedom, K = 10, 100 epochs at batch size 2.

The paper reports mIoU 75.26, 77.57, 70.09 and 65.22 for folds 0-3 (Table 1, masks), mean 72.04,
trained on one H100. Not reproduced with this library yet. One H200 would take 2.8 to 4.2 hours a
fold in bfloat16, 0.28 to 0.42 with a feature cache (`docs/train.md`): computed, not measured.
"""


def get_config() -> dict:
    """The settings that differ from their defaults."""
    return {"data": {"name": "pascal"}}
