"""ProSAM on Pascal-5i, as in section 5.1 of the paper.

    python train.py --config configs/pascal.py --config.data.root=VOCdevkit/VOC2012 \
        --config.data.fold=0 --workdir=runs/pascal0

The paper reports mIoU 75.26, 77.57, 70.09 and 65.22 for folds 0-3 (Table 1, mask annotation),
trained on one H100 with batch size 2. This library has not repeated that yet.
"""

from ml_collections import ConfigDict

from prosam_jax.config import Config, to_dict


def get_config() -> ConfigDict:
    """All settings; `prosam_jax.config` says what each one means."""
    config = ConfigDict(to_dict(Config()))
    config.seed = 321
    config.data.name = "pascal"
    config.data.image_size = 512
    config.sam.model = "vit_h"
    config.backbone.name = "resnet50"
    config.prompt.num_queries = 50
    config.distribution.name = "student_t"
    config.distribution.nu = 5.0
    config.distribution.samples = 10
    config.train.epochs = 100
    config.train.batch_size = 2
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 1e-6
    config.train.schedule = "warm_restarts"
    config.train.restart_epochs = 15
    config.eval.episodes = 1000
    return config
