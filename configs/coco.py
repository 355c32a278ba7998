r"""ProSAM on COCO-20i, as in section 5.1 of the paper.

    prosam train --config coco --config.data.root=COCO2014 \
        --config.data.fold=0 --config.data.annotation=mask --workdir runs/coco0

The paper reports mIoU 48.74, 55.55, 60.72 and 53.49 for folds 0-3 (Table 1, masks), mean 54.63,
trained on four RTX 4090 with batch size 2 on each. A step of theirs had only two different
episodes, since every GPU drew the same ones; here all eight differ. Not reproduced with this
library yet. One H200 would take 17 to 34 hours a fold in bfloat16, 1.8 to 3.6 with a feature cache
(`docs/train.md`): computed, not measured.
"""


def get_config() -> dict:
    """The settings that differ from their defaults."""
    return {"data": {"name": "coco"}, "train": {"batch_size": 8}}
