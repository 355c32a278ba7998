"""SAM's image encoder against `segment_anything`'s, with the same random weights and images.

python -m benchmarks.encoder --model vit_b --size 1024 --malloc default tuned
python -m benchmarks.encoder --model vit_h --device gpu --dtype bfloat16 --batch 1 8 \
    --attention plain cudnn --torch eager sdpa compile_blocks
"""

import argparse
import copy
import dataclasses
import functools
from typing import Any

from benchmarks import forward
from prosam_jax.config import ATTENTIONS, DTYPES, SAM_MODELS, SAMConfig


def architecture(args: argparse.Namespace, attention: str = "plain") -> SAMConfig:
    """The network that the arguments describe."""
    cfg = SAMConfig.named(args.model)
    return dataclasses.replace(
        cfg,
        depth=args.blocks or cfg.depth,
        image_size=(args.size, args.size),
        dtype=args.dtype,
        attention=attention,
    )


@functools.cache
def twin(cfg: SAMConfig) -> Any:
    """`segment_anything`'s SAM; drawing ViT-H takes 8 s."""
    from torch_models import sam

    return sam.build(cfg, forward.SEED)


def torch_side(args: argparse.Namespace, batch: int, dtype: str, variant: str) -> Any:
    """`segment_anything`'s encoder; with fused attention, unless the variant is "eager"."""
    from benchmarks import pytorch
    from torch_models import sam

    encoder = copy.deepcopy(twin(architecture(args)).image_encoder)
    if variant != "eager":
        sam.use_sdpa(encoder)
    return pytorch.Forward(encoder, forward.images(args, batch), args.device, dtype, variant)


def our_side(args: argparse.Namespace, batch: int, file: str, attention: str) -> Any:
    """This library's encoder."""
    from benchmarks import ours
    from prosam_jax.sam.model import Sam

    cfg = architecture(args, attention)
    sam = ours.load(lambda rngs: Sam(cfg, rngs=rngs), file)
    return ours.Forward(Sam.encode_image, sam, forward.images(args, batch), args.dtype)


def write(args: argparse.Namespace, file: str) -> None:
    """Writes the converted weights."""
    from benchmarks import converted
    from prosam_jax.convert.rules.sam import META_RULES
    from prosam_jax.sam.model import Sam

    cfg = architecture(args)
    converted.write(twin(cfg), lambda rngs: Sam(cfg, rngs=rngs), META_RULES, (), file)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures and writes."""
    parser = forward.parser(__doc__, variants=["eager"])
    parser.add_argument("--model", choices=SAM_MODELS, default="vit_b")
    parser.add_argument(
        "--blocks",
        type=int,
        help="blocks of the ViT, all by default; 3 of ViT-B are a quarter of the work",
    )
    parser.add_argument("--size", type=int, default=1024, help="side of the images")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--attention", choices=ATTENTIONS, nargs="+", default=["plain"])
    args = parser.parse_args(argv)
    cfg = architecture(args)
    network = forward.Network(
        f"encoder_{args.model}_{args.dtype}_{args.device}",
        torch_side,
        our_side,
        write,
        args.attention,
        torch_flops=cfg.encoder_operations(padded=True),
        our_flops=cfg.encoder_operations(),
    )
    return forward.run(network, args)


if __name__ == "__main__":
    main()
