r"""ProSAM on your own pictures and masks.

    prosam prepare folder --root my_data
    prosam train --config folder --config.data.root=my_data --config.data.novel=fox,owl \
        --workdir runs/mine

Trains on all classes but the novel ones, and tests on the novel ones. Without `data.novel`, every
fourth class is novel. `docs/data.md` describes the layout of the folder.
"""


def get_config() -> dict:
    """The settings that differ from their defaults."""
    return {
        "data": {"name": "folder"},
        "train": {"steps": 5000, "schedule": "cosine", "eval_every": 500},
        "eval": {"episodes": 200},
    }
