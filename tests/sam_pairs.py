"""The same random SAM in torch and in flax, made once for all tests that want it."""

import dataclasses
import functools

import torch_sam

from prosam_jax.config import SAMConfig

# 5 x 5 windows on a grid of 7 x 12, which is padded both ways to 2 x 3 windows
CFG = dataclasses.replace(SAMConfig.tiny(), image_size=(112, 192))


@functools.cache
def pair(cfg, seed):
    oracle = torch_sam.build_torch_sam(cfg, seed)
    return oracle, torch_sam.convert_to_flax(oracle, cfg)
