"""ProSAM on COCO-20i, as in section 5.1 of the paper.

    python train.py --config configs/coco.py --config.data.root=COCO2014 \
        --config.data.fold=0 --workdir=runs/coco0

The paper reports mIoU 48.74, 55.55, 60.72 and 53.49 for folds 0-3 (Table 1, mask annotation),
trained on four RTX 4090 with batch size 2 on each. Their steps held two different episodes, since
every GPU drew the same; here all eight differ. This library has not repeated that yet.
"""


def get_config() -> dict:
    """What differs from the defaults of `prosam_jax.config`."""
    return {"data": {"name": "coco"}, "train": {"batch_size": 8}}
