"""Rules of SAM's checkpoints, in Meta's and in Hugging Face's layout."""

import re
from collections.abc import Callable

import numpy as np

from prosam_jax.convert.engine import Rule, conv, conv_transpose, identity, linear

# The modules have Meta's names; only the name of the leaf and its layout change.
META_RULES = (
    Rule(r"(.+\.bias)", r"\1"),
    # Image encoder
    Rule(r"(image_encoder\.pos_embed)", r"\1"),
    Rule(r"(image_encoder\.patch_embed\.proj)\.weight", r"\1.kernel", conv),
    Rule(r"(image_encoder\.blocks\.\d+\.norm[12])\.weight", r"\1.scale"),
    Rule(r"(image_encoder\.blocks\.\d+\.attn\.(?:qkv|proj))\.weight", r"\1.kernel", linear),
    Rule(r"(image_encoder\.blocks\.\d+\.attn\.rel_pos_[hw])", r"\1"),
    Rule(r"(image_encoder\.blocks\.\d+\.mlp\.lin[12])\.weight", r"\1.kernel", linear),
    Rule(r"(image_encoder\.neck\.[02])\.weight", r"\1.kernel", conv),
    Rule(r"(image_encoder\.neck\.[13])\.weight", r"\1.scale"),
    # Prompt encoder
    Rule(r"(prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix)", r"\1"),
    Rule(r"(prompt_encoder\.point_embeddings\.\d)\.weight", r"\1.embedding"),
    Rule(r"(prompt_encoder\.(?:not_a_point|no_mask)_embed)\.weight", r"\1.embedding"),
    Rule(r"(prompt_encoder\.mask_downscaling\.[036])\.weight", r"\1.kernel", conv),
    Rule(r"(prompt_encoder\.mask_downscaling\.[14])\.weight", r"\1.scale"),
    # Mask decoder
    Rule(r"(mask_decoder\.(?:iou_token|mask_tokens))\.weight", r"\1.embedding"),
    Rule(r"(mask_decoder\.transformer\..+_proj)\.weight", r"\1.kernel", linear),
    Rule(r"(mask_decoder\.transformer\..+\.mlp\.lin[12])\.weight", r"\1.kernel", linear),
    Rule(
        r"(mask_decoder\.transformer\.(?:layers\.\d+\.norm[1-4]|norm_final_attn))\.weight",
        r"\1.scale",
    ),
    Rule(r"(mask_decoder\.output_upscaling\.[03])\.weight", r"\1.kernel", conv_transpose),
    Rule(r"(mask_decoder\.output_upscaling\.1)\.weight", r"\1.scale"),
    Rule(
        r"(mask_decoder\.output_hypernetworks_mlps\.\d\.layers\.\d)\.weight", r"\1.kernel", linear
    ),
    Rule(r"(mask_decoder\.iou_prediction_head\.layers\.\d)\.weight", r"\1.kernel", linear),
)

# One matrix under two names; a file holds one of them or both.
HF_POSITIONS = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


def _layer(
    source: str,
    target: str,
    leaf: str,
    transform: Callable[[np.ndarray], np.ndarray] = identity,
) -> tuple[Rule, Rule]:
    """Rules for the weight of a layer, called `leaf` here, and its bias."""
    weight = Rule(rf"{source}\.weight", rf"{target}.{leaf}", transform)
    return weight, Rule(rf"{source}\.bias", rf"{target}.bias")


_BLOCK = r"vision_encoder\.layers\.(\d+)"
_TWO_WAY = r"(mask_decoder\.transformer\.layers\.\d+)"
_HEAD = r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))"

HF_RULES = (
    # Image encoder
    Rule(r"vision_encoder\.pos_embed", "image_encoder.pos_embed"),
    *_layer(
        r"vision_encoder\.patch_embed\.projection",
        "image_encoder.patch_embed.proj",
        "kernel",
        conv,
    ),
    *_layer(rf"{_BLOCK}\.layer_norm([12])", r"image_encoder.blocks.\1.norm\2", "scale"),
    *_layer(
        rf"{_BLOCK}\.(attn\.(?:qkv|proj)|mlp\.lin[12])",
        r"image_encoder.blocks.\1.\2",
        "kernel",
        linear,
    ),
    Rule(rf"{_BLOCK}\.(attn\.rel_pos_[hw])", r"image_encoder.blocks.\1.\2"),
    Rule(r"vision_encoder\.neck\.conv1\.weight", "image_encoder.neck.0.kernel", conv),
    *_layer(r"vision_encoder\.neck\.layer_norm1", "image_encoder.neck.1", "scale"),
    Rule(r"vision_encoder\.neck\.conv2\.weight", "image_encoder.neck.2.kernel", conv),
    *_layer(r"vision_encoder\.neck\.layer_norm2", "image_encoder.neck.3", "scale"),
    # Prompt encoder
    Rule(
        "|".join(map(re.escape, HF_POSITIONS)),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    Rule(
        r"prompt_encoder\.point_embed\.(\d)\.weight",
        r"prompt_encoder.point_embeddings.\1.embedding",
    ),
    Rule(r"(prompt_encoder\.(?:not_a_point|no_mask)_embed)\.weight", r"\1.embedding"),
    *(
        rule
        for source, target, leaf, transform in (
            ("conv1", 0, "kernel", conv),
            ("layer_norm1", 1, "scale", identity),
            ("conv2", 3, "kernel", conv),
            ("layer_norm2", 4, "scale", identity),
            ("conv3", 6, "kernel", conv),
        )
        for rule in _layer(
            rf"prompt_encoder\.mask_embed\.{source}",
            f"prompt_encoder.mask_downscaling.{target}",
            leaf,
            transform,
        )
    ),
    # Mask decoder
    Rule(r"(mask_decoder\.(?:iou_token|mask_tokens))\.weight", r"\1.embedding"),
    *_layer(r"(mask_decoder\.transformer\..+_proj)", r"\1", "kernel", linear),
    *_layer(rf"{_TWO_WAY}\.(mlp\.lin[12])", r"\1.\2", "kernel", linear),
    *_layer(rf"{_TWO_WAY}\.layer_norm([1-4])", r"\1.norm\2", "scale"),
    *_layer(
        r"mask_decoder\.transformer\.layer_norm_final_attn",
        "mask_decoder.transformer.norm_final_attn",
        "scale",
    ),
    *_layer(
        r"mask_decoder\.upscale_conv1", "mask_decoder.output_upscaling.0", "kernel", conv_transpose
    ),
    *_layer(r"mask_decoder\.upscale_layer_norm", "mask_decoder.output_upscaling.1", "scale"),
    *_layer(
        r"mask_decoder\.upscale_conv2", "mask_decoder.output_upscaling.3", "kernel", conv_transpose
    ),
    *_layer(rf"{_HEAD}\.proj_in", r"\1.layers.0", "kernel", linear),
    *_layer(rf"{_HEAD}\.layers\.0", r"\1.layers.1", "kernel", linear),
    *_layer(rf"{_HEAD}\.proj_out", r"\1.layers.2", "kernel", linear),
)
