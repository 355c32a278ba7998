"""Rules of DINOv2's checkpoints, in Meta's and in Hugging Face's layout."""

from prosam_jax.convert.engine import Ignored, Rule, conv, linear

LINEAR = r"(blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12]))"
NORM = r"(norm|blocks\.\d+\.norm[12])"

RULES = (
    Rule(r"(cls_token|pos_embed|register_tokens)", r"\1"),
    Rule(r"(patch_embed\.proj)\.weight", r"\1.kernel", conv),
    Rule(r"(patch_embed\.proj\.bias)", r"\1"),
    Rule(rf"{LINEAR}\.weight", r"\1.kernel", linear),
    Rule(rf"{LINEAR}\.bias", r"\1.bias"),
    Rule(rf"{NORM}\.weight", r"\1.scale"),
    Rule(rf"{NORM}\.bias", r"\1.bias"),
    Rule(r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
)
IGNORED = (
    Ignored(r"(embeddings\.)?mask_token", "it stands for hidden patches, in pretraining only"),
)

_BLOCK = r"encoder\.layer\.(\d+)"
_PARTS = ("query", "key", "value")

# Published files have queries, keys and values in three layers each.
HF_RULES = (
    Rule(r"embeddings\.(cls_token|register_tokens)", r"\1"),
    Rule(r"embeddings\.position_embeddings", "pos_embed"),
    Rule(r"embeddings\.patch_embeddings\.projection\.weight", "patch_embed.proj.kernel", conv),
    Rule(r"embeddings\.patch_embeddings\.projection\.bias", "patch_embed.proj.bias"),
    *(
        rule
        for i, name in enumerate(_PARTS)
        for rule in (
            Rule(
                rf"{_BLOCK}\.attention\.attention\.{name}\.weight",
                r"blocks.\1.attn.qkv.kernel",
                linear,
                (i, len(_PARTS)),
            ),
            Rule(
                rf"{_BLOCK}\.attention\.attention\.{name}\.bias",
                r"blocks.\1.attn.qkv.bias",
                part=(i, len(_PARTS)),
            ),
        )
    ),
    Rule(rf"{_BLOCK}\.attention\.output\.dense\.weight", r"blocks.\1.attn.proj.kernel", linear),
    Rule(rf"{_BLOCK}\.attention\.output\.dense\.bias", r"blocks.\1.attn.proj.bias"),
    Rule(rf"{_BLOCK}\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    Rule(rf"{_BLOCK}\.(mlp\.fc[12])\.weight", r"blocks.\1.\2.kernel", linear),
    Rule(rf"{_BLOCK}\.(mlp\.fc[12])\.bias", r"blocks.\1.\2.bias"),
    Rule(rf"{_BLOCK}\.norm([12])\.weight", r"blocks.\1.norm\2.scale"),
    Rule(rf"{_BLOCK}\.norm([12])\.bias", r"blocks.\1.norm\2.bias"),
    Rule(r"layernorm\.weight", "norm.scale"),
    Rule(r"layernorm\.bias", "norm.bias"),
)
