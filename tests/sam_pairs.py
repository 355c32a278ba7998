"""The same random SAM in torch and in flax, made once for all tests that want it."""

import dataclasses
import functools

import torch

from prosam_jax.config import SAMConfig
from prosam_jax.convert import engine
from prosam_jax.convert.rules import sam as sam_rules
from prosam_jax.sam.model import Sam
from torch_models import sam

# 5 x 5 windows on a grid of 7 x 12, which is padded both ways to 2 x 3 windows
CFG = dataclasses.replace(SAMConfig.tiny(), image_size=(112, 192))


@functools.cache
def pair(cfg, seed):
    oracle = sam.build(cfg, seed)
    return oracle, convert(oracle, cfg)


def convert(oracle, cfg):
    """The same SAM in JAX, through the rules of the conversion command."""
    source = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    return engine.filled(lambda rngs: Sam(cfg, rngs=rngs), source, sam_rules.META_RULES)


@functools.cache
def published_shapes(model):
    """Names and shapes of the tensors in the published checkpoint of "vit_b", "vit_l", "vit_h"."""
    with torch.device("meta"):
        state = sam.published(model).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
