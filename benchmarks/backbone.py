"""A frozen backbone against the same in PyTorch, with the same random weights and images.

python -m benchmarks.backbone --name resnet50 --size 512 --batch 4 --malloc default tuned
"""

import argparse
from typing import Any

from benchmarks import forward

TWINS = "resnet50", "resnet101", "resnet50_torchvision", "resnet101_torchvision"


def twin(args: argparse.Namespace) -> Any:
    """The network in PyTorch."""
    from torch_models import resnet

    return getattr(resnet, args.name)(forward.SEED)


def torch_side(args: argparse.Namespace, batch: int, dtype: str, variant: str) -> Any:
    """PyTorch's taps."""
    from benchmarks import pytorch

    return pytorch.Forward(twin(args), forward.images(args, batch), args.device, dtype, variant)


def our_side(args: argparse.Namespace, batch: int, file: str, variant: str) -> Any:
    """This library's taps."""
    from benchmarks import ours
    from prosam_jax import backbone
    from prosam_jax.config import BackboneConfig

    del variant  # there is one
    cfg = BackboneConfig.of(name=args.name)
    network = ours.load(lambda rngs: backbone.build(cfg, rngs=rngs), file)
    return ours.Forward(backbone.target_taps, network, forward.images(args, batch), args.dtype)


def write(args: argparse.Namespace, file: str) -> None:
    """Writes the converted weights."""
    from benchmarks import converted
    from prosam_jax import backbone
    from prosam_jax.config import BackboneConfig
    from prosam_jax.convert import backbone_to_flax

    cfg, table = BackboneConfig.of(name=args.name), backbone_to_flax.TABLES[args.name]
    converted.write(
        twin(args), lambda rngs: backbone.build(cfg, rngs=rngs), table.rules, table.ignored, file
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures and writes."""
    parser = forward.parser(__doc__, variants=["eager", "channels_last"])
    parser.add_argument("--name", choices=TWINS, default="resnet50")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    args = parser.parse_args(argv)
    args.dtype = "float32"  # backbones have no other type
    network = forward.Network(f"backbone_{args.name}_{args.device}", torch_side, our_side, write)
    return forward.run(network, args)


if __name__ == "__main__":
    main()
