r"""ProSAM on COCO-20i, as in section 5.1 of the paper.

    prosam train --config coco --config.data.root=COCO2014 --config.data.fold=0 \
        --workdir runs/coco0

The paper reports mIoU 48.74, 55.55, 60.72 and 53.49 for folds 0-3 (Table 1, mask annotation),
trained on four RTX 4090 with batch size 2 on each. A step of theirs had only two different
episodes, since every GPU drew the same ones; here all eight differ. These results have not been
reproduced with this library yet.
"""


def get_config() -> dict:
    """The settings that differ from their defaults."""
    return {"data": {"name": "coco"}, "train": {"batch_size": 8}}
