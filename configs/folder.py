"""ProSAM on pictures and masks of one's own.

    python -m prosam_jax.data.prepare folder --root my_data
    python train.py --config configs/folder.py --config.data.root=my_data \
        --config.data.novel="fox,owl" --workdir=runs/mine

Trains on all classes but the novel ones and tests on these. Without `data.novel` every fourth
class is novel. `docs/data.md` has the layout of the folder.
"""

from ml_collections import ConfigDict

from configs import pascal


def get_config() -> ConfigDict:
    """The recipe for Pascal-5i with another benchmark; its length is in steps."""
    config = pascal.get_config()
    config.data.name = "folder"
    config.train.steps = 5000
    config.train.schedule = "cosine"
    config.train.eval_every = 500
    config.eval.episodes = 200
    return config
