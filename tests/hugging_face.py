"""Networks of transformers with random weights, which save files of the published layouts."""

import functools

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SamConfig,
    SamModel,
)
from transformers.models.sam import configuration_sam

from prosam_jax.config import SAMConfig
from torch_models import sam
from torch_models.random_weights import draw

# Meta's norms in the two-way transformer have 1e-5, the layout's default of 1e-6 is off by that.
TINY = SamConfig(
    vision_config=configuration_sam.SamVisionConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=256,
        window_size=5,
        global_attn_indexes=[1],
    ),
    prompt_encoder_config=configuration_sam.SamPromptEncoderConfig(image_size=256),
    mask_decoder_config=configuration_sam.SamMaskDecoderConfig(mlp_dim=128, layer_norm_eps=1e-5),
)


@functools.cache
def tiny_sam(seed):
    return _sam(TINY, seed)


def published_sam(model, seed):
    """As facebook/sam-vit-base, -large or -huge."""
    return _sam(
        SamConfig(vision_config=vision(model), mask_decoder_config={"layer_norm_eps": 1e-5}), seed
    )


def vision(model):
    cfg = SAMConfig.named(model)
    return configuration_sam.SamVisionConfig(
        hidden_size=cfg.embed_dim,
        num_hidden_layers=cfg.depth,
        num_attention_heads=cfg.num_heads,
        global_attn_indexes=list(cfg.global_attn_indexes),
    )


def _sam(config, seed):
    made = SamModel(config)
    sam.draw(made, seed)
    return made.eval().requires_grad_(False)


def dinov2(dim, depth, heads, seed, *, grid=37, registers=0):
    """As facebook/dinov2-small and so on, and facebook/dinov2-with-registers-large."""
    sizes = {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": 14 * grid,
        "patch_size": 14,
    }
    if registers:
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        made = Dinov2WithRegistersModel(config)
    else:
        made = Dinov2Model(Dinov2Config(**sizes))
    draw(made, seed)
    with torch.no_grad():
        # `draw` scales these like kernels, which makes them too small to matter.
        for table in (made.embeddings.position_embeddings, made.embeddings.cls_token):
            table *= table[0].numel() ** 0.5
        if registers:
            made.embeddings.register_tokens *= made.embeddings.register_tokens[0].numel() ** 0.5
    return made.eval().requires_grad_(False)
