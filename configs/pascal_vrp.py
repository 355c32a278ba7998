r"""VRP-SAM on Pascal-5i: prompts instead of a distribution over them.

    prosam train --config pascal_vrp --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_vrp0

The paper reports mIoU 74.01, 76.77, 69.46 and 64.34 for folds 0-3 (Table 1, masks), mean 71.14. Not
reproduced with this library yet. One H200 would take 2.8 to 4.1 hours a fold in bfloat16, 0.26 to
0.38 with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"distribution": {"name": "vrp"}}
