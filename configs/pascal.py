"""ProSAM on Pascal-5i, as in section 5.1 of the paper.

    python train.py --config configs/pascal.py --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --workdir=runs/pascal0

All other settings have their defaults, which are the paper's: ViT-H, the deep-stem ResNet-50, 50
prompts, Student-t with 5 degrees of freedom, K = 10, 100 epochs at batch size 2. The paper reports
mIoU 75.26, 77.57, 70.09 and 65.22 for folds 0-3 (Table 1, mask annotation), trained on one H100.
This library has not repeated that yet.
"""


def get_config() -> dict:
    """What differs from the defaults of `prosam_jax.config`."""
    return {"data": {"name": "pascal"}}
