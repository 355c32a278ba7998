r"""VRP-SAM on COCO-20i: prompts instead of a distribution over them.

    prosam train --config coco_vrp --config.data.root=COCO2014 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/coco_vrp0

The paper reports mIoU 47.02, 54.24, 59.91 and 51.95 for folds 0-3 (Table 1, masks), mean 53.28. Not
reproduced with this library yet. One H200 would take 17 to 34 hours a fold in bfloat16, 1.6 to 3.2
with a feature cache (`docs/train.md`): computed, not measured.
"""

BASE = "coco"


def get_config() -> dict:
    """The settings that differ from those of the base."""
    return {"distribution": {"name": "vrp"}}
