r"""ProSAM on FSS-1000 (Li et al. 2020), which the paper does not use.

    prosam prepare fss --root data/fss
    prosam train --config fss --config.data.root=data/fss --workdir runs/fss
    prosam evaluate --workdir runs/fss

Trains on 520 classes, validates on 240 others and is evaluated on the 240 test classes, with each
of their 2,400 pictures as the target once. `docs/data.md` says with which published figures that
may be compared. No run has been done with this library yet.
"""


def get_config() -> dict:
    """The settings that differ from their defaults."""
    return {
        "data": {"name": "fss"},
        "train": {"eval_every": 13000},  # five epochs: a validation has as many episodes as one has
        "eval": {"episodes": 2400},
    }
