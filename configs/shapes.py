"""ProSAM on Shapes-5i (generated pictures) with the small frozen networks of the package.

    prosam train --config shapes --workdir runs/shapes

Takes a few minutes on two CPU cores. `prosam demo` uses this recipe, too.
"""


def get_config() -> dict:
    """The settings that differ from their defaults."""
    return {
        "data": {"name": "shapes", "image_size": 128},
        "sam": {"model": "shapes", "weights": "packaged"},
        "backbone": {"name": "shapes", "weights": "packaged"},
        "prompt": {"dim": 96},
        # With a scale of 1 the noise drowns the prompts and nothing is learned.
        "distribution": {"samples": 2, "init_scale": 0.03},
        "train": {
            "steps": 1000,
            "learning_rate": 5e-4,  # with 1e-3, linear heads delay training
            "schedule": "cosine",
            "log_every": 50,
            "checkpoint_every": 250,
            "eval_every": 500,
        },
        "eval": {"episodes": 100, "batch_size": 4},
    }
