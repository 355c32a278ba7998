"""A run small enough for tests: tiny frozen networks at random, a made-up VOC folder."""

import dataclasses

from fake_voc import write_voc

import prosam_jax
from prosam_jax.config import Config
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights import files, prompt_encoder
from prosam_jax.weights.prompt_encoder import Trained

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


def prompt_encoder_file(path, **changes):
    """A prompt encoder as a trained one is kept, with random numbers; needs no other file."""
    groups = {name: dict(SETTINGS[name]) for name in ("data", "sam", "backbone", "prompt")}
    for name, group in changes.items():
        groups.setdefault(name, {}).update(group)
    cfg = Config.from_dict(groups)
    channels = 192

    def build(rngs):
        return ReferencePromptEncoder(cfg.prompt, cfg.distribution, channels, rngs=rngs)

    arrays = files.leaves(files.random(build, 3))
    known = {"frozen": prompt_encoder.frozen_weights(cfg), "version": prosam_jax.__version__}
    prompt_encoder.save(path, arrays, Trained(config=cfg, merged_channels=channels, **known))
    return path
