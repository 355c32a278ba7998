"""ProSAM on pictures and masks of one's own.

    prosam prepare folder --root my_data
    python train.py --config configs/folder.py --config.data.root=my_data \
        --config.data.novel="fox,owl" --workdir=runs/mine

Trains on all classes but the novel ones and tests on these. Without `data.novel` every fourth
class is novel. `docs/data.md` has the layout of the folder.
"""


def get_config() -> dict:
    """What differs from the defaults of `prosam_jax.config`."""
    return {
        "data": {"name": "folder"},
        "train": {"steps": 5000, "schedule": "cosine", "eval_every": 500},
        "eval": {"episodes": 200},
    }
