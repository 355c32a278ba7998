"""Rules of DINOv2's published checkpoints, for `prosam_jax.backbone.dinov2`.

Checkpoints with registers belong to another network; no rule matches their `register_tokens`.
"""

from prosam_jax.convert.engine import Ignored, Rule, conv, linear

LINEAR = r"(blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12]))"
NORM = r"(norm|blocks\.\d+\.norm[12])"

RULES = (
    Rule(r"(cls_token|pos_embed)", r"\1"),
    Rule(r"(patch_embed\.proj)\.weight", r"\1.kernel", conv),
    Rule(r"(patch_embed\.proj\.bias)", r"\1"),
    Rule(rf"{LINEAR}\.weight", r"\1.kernel", linear),
    Rule(rf"{LINEAR}\.bias", r"\1.bias"),
    Rule(rf"{NORM}\.weight", r"\1.scale"),
    Rule(rf"{NORM}\.bias", r"\1.bias"),
    Rule(r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
)
IGNORED = (Ignored("mask_token", "it stands for hidden patches, in pretraining only"),)
