r"""ProSAM on Pascal-5i with a Gaussian instead of Student's t.

    prosam train --config pascal_gaussian --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/pascal_gaussian0

The paper reports mIoU 74.2, 77.11, 69.67 and 64.66 for folds 0-3 (Table 4), mean 71.41. Not
reproduced with this library yet. One H200 would take 2.8 to 4.2 hours a fold in bfloat16, 0.28 to
0.42 with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "pascal"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"distribution": {"name": "gaussian"}}
