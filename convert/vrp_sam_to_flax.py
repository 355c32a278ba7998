r"""Converts the learned part of a VRP-SAM checkpoint to a weight file of the prompt encoder.

    python convert/vrp_sam_to_flax.py --checkpoint vrp_sam_resnet50.pt --out weights/vrp.safetensors

The result fits `distribution.name="vrp"` with the ResNet-50 backbone. The frozen backbone in the
same checkpoint is converted by convert/backbone_to_flax.py.
"""

import pathlib
import re
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from convert import command, torch_files
from convert.engine import Ignored, Rule, linear, pointwise
from prosam_jax.config import DistributionConfig, PromptConfig
from prosam_jax.prompt.encoder import ReferencePromptEncoder

# VRP-SAM reads the reference first, with the layers called *_0, then the target with the others.
BLOCKS = {
    "transformer_cross_attention_layers_0.0.multihead_attn": "support_cross",
    "transformer_self_attention_layers_0.0.self_attn": "support_self",
    "transformer_cross_attention_layers.0.multihead_attn": "query_cross",
    "transformer_self_attention_layers.0.self_attn": "query_self",
}

RESNET50_CHANNELS = 512 + 1024  # layers 2 and 3, concatenated


def _block(source: str, target: str) -> list[Rule]:
    attention = re.escape(f"transformer_decoder.{source}")
    norm = re.escape(f"transformer_decoder.{source.rpartition('.')[0]}.norm")
    q, k, v, out = (rf"decoder.{target}.{x}_proj" for x in ("q", "k", "v", "out"))
    return [
        Rule(
            rf"{attention}\.in_proj_weight", (f"{q}.kernel", f"{k}.kernel", f"{v}.kernel"), linear
        ),
        Rule(rf"{attention}\.in_proj_bias", (f"{q}.bias", f"{k}.bias", f"{v}.bias")),
        Rule(rf"{attention}\.out_proj\.weight", f"{out}.kernel", linear),
        Rule(rf"{attention}\.out_proj\.bias", f"{out}.bias"),
        Rule(rf"{norm}\.weight", f"decoder.{target}_norm.scale"),
        Rule(rf"{norm}\.bias", f"decoder.{target}_norm.bias"),
    ]


RULES = (
    Rule(r"downsample_query\.0\.weight", "features.reduce.kernel", pointwise),
    Rule(r"merge_1\.0\.weight", "features.merge.kernel", pointwise),
    Rule(r"transformer_decoder\.supp_q_feat\.weight", "decoder.queries"),
    *(rule for source, target in BLOCKS.items() for rule in _block(source, target)),
)
IGNORED = (
    Ignored(r"layer[0-4]\..*", "the frozen backbone, which convert/backbone_to_flax.py takes"),
)


def convert(checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the prompt encoder.

    Raises:
        ValueError: The checkpoint cannot be read or holds no such prompt encoder.
    """
    command.write(
        torch_files.read(checkpoint),
        out,
        kind="prompt_encoder",
        architecture="vrp",
        build=lambda rngs: ReferencePromptEncoder(
            PromptConfig(), DistributionConfig(name="vrp"), RESNET50_CHANNELS, rngs=rngs
        ),
        rules=RULES,
        ignored=IGNORED,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    args = command.parser(__doc__).parse_args(argv)
    return command.exit_status(lambda: convert(args.checkpoint, args.out))


if __name__ == "__main__":
    sys.exit(main())
