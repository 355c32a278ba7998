"""Shapes-5i, generated pictures, with the small frozen networks of this package.

    python train.py --config configs/shapes.py --workdir=runs/shapes

`demo.py` takes its settings from here, too. A few minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import pascal


def get_config() -> ConfigDict:
    """The recipe for Pascal-5i with another benchmark, small networks and few steps."""
    config = pascal.get_config()
    config.data.name = "shapes"
    config.data.image_size = 128
    config.sam.model = "shapes"
    config.sam.weights = "packaged"
    config.backbone.name = "shapes"
    config.backbone.weights = "packaged"
    config.prompt.dim = 96
    config.distribution.samples = 2
    config.distribution.init_scale = 0.03  # with 1 the noise drowns the prompts: nothing is learnt
    config.train.steps = 1000
    config.train.learning_rate = 5e-4  # with 1e-3 linear heads hold training up
    config.train.schedule = "cosine"
    config.train.log_every = 50
    config.train.checkpoint_every = 250
    config.train.eval_every = 500
    config.eval.episodes = 100
    config.eval.batch_size = 4
    return config
