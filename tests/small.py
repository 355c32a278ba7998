"""A run small enough for tests: tiny frozen networks at random, a made-up VOC folder."""

import dataclasses

from fake_voc import write_voc

from prosam_jax.config import Config

SETTINGS = {
    "data": {"image_size": 64, "fold": 1},
    "sam": {"model": "tiny", "weights": "random", "image_size": 64},
    "backbone": {"name": "tiny", "weights": "random"},
    "prompt": {"num_queries": 5},
    "distribution": {"samples": 2},
    "train": {"steps": 6, "log_every": 1, "eval_every": 4, "learning_rate": 1e-3},
    "eval": {"episodes": 3, "pictures": 2},
}


def small_config(root, **changes):
    """The settings above; `changes` are groups, such as train={"steps": 2}."""
    write_voc(root)
    groups = {name: dict(group) for name, group in SETTINGS.items()}
    for name, group in changes.items():
        groups.setdefault(name, {}).update(group)
    groups["data"]["root"] = str(root)
    return Config.from_dict(groups)


def flags(cfg):
    """The settings that differ from the defaults, as a command line gives them."""
    default = Config()
    arguments = []
    for group in ("data", "sam", "backbone", "prompt", "distribution", "train", "eval", "cache"):
        for field in dataclasses.fields(getattr(cfg, group)):
            value = getattr(getattr(cfg, group), field.name)
            if value != getattr(getattr(default, group), field.name):
                arguments.append(f"--config.{group}.{field.name}={value}")
    return arguments
