r"""VRP-SAM on Pascal-5i with two more linear layers, so as large as ProSAM.

    prosam train --config pascal_vrp_2linear --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_vrp_2linear0

The paper reports mIoU 74.04, 76.55, 69.71 and 63.98 for folds 0-3 (Table 7). Not reproduced with
this library yet. One H200 would take 2.8 to 4.1 hours a fold in bfloat16, 0.26 to 0.38 with a
feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"distribution": {"name": "vrp_2linear"}}
