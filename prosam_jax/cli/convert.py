"""The command `prosam weights convert`, which converts a torch checkpoint to a weight file."""

import argparse

from prosam_jax.cli.arguments import as_path
from prosam_jax.config import BACKBONES, DISTRIBUTIONS, SAM_MODELS

SAM = """Converts a SAM checkpoint.

    prosam weights convert sam --model vit_h --checkpoint sam_vit_h_4b8939.pth \\
        --out weights/sam_vit_h.safetensors

It takes Meta's checkpoints (`prosam weights fetch sam_vit_h`) and the model.safetensors or
pytorch_model.bin of facebook/sam-vit-huge, -large and -base on Hugging Face, and recognises the
layout by the names of the tensors.
"""

BACKBONE = """Converts a checkpoint of a semantic backbone.

    prosam weights convert backbone --model resnet50 --checkpoint resnet50_v2.pth \\
        --out weights/resnet50.safetensors

`prosam weights list` shows which checkpoint belongs to which model. "resnet50" and "resnet101" have
three 3x3 convolutions in their stem; semseg publishes them as resnet50_v2.pth and resnet101_v2.pth,
and work on few-shot segmentation (PFENet, VRP-SAM) builds on them. The backbone can also be taken
from a VRP-SAM checkpoint, which has it under other names.
"""

VRP_SAM = """Converts a checkpoint of VRP-SAM, or of ProSAM on top of it, to a prompt encoder.

    prosam weights convert vrp-sam --checkpoint vrp_sam_resnet50.pt --out vrp.safetensors
    prosam weights convert vrp-sam --checkpoint prosam.pt --out prosam.safetensors \\
        --distribution student_t --mean-head MODULE --scale-head MODULE

`--prompt-encoder` takes the result. The number of prompts and, if it is included, the backbone's
name are read from the checkpoint; convert the backbone's weights with `prosam weights convert
backbone`. Fold, steps and scores of the training remain unknown. ProSAM's authors have not
published a checkpoint, so you must name its heads.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a parser for each kind of checkpoint."""
    kinds = parser.add_subparsers(metavar="KIND")
    for name, doc, run in (
        ("sam", SAM, sam),
        ("backbone", BACKBONE, backbone),
        ("vrp-sam", VRP_SAM, vrp_sam),
    ):
        one = kinds.add_parser(
            name,
            help=doc.partition("\n")[0],
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        one.add_argument("--checkpoint", type=as_path, required=True, help="the torch checkpoint")
        one.add_argument(
            "--out", type=as_path, required=True, help="the .safetensors file to write"
        )
        one.set_defaults(run=run)
        if name != "vrp-sam":
            known = SAM_MODELS if name == "sam" else BACKBONES
            one.add_argument("--model", required=True, help=f"one of {', '.join(known)}")
            continue
        one.add_argument(
            "--distribution",
            default="vrp",
            help=f"one of {', '.join(DISTRIBUTIONS)} (default: vrp)",
        )
        one.add_argument("--mean-head", metavar="MODULE", help="the module that predicts mu")
        one.add_argument(
            "--scale-head", metavar="MODULE", help="the module that predicts log sigma"
        )
        one.add_argument("--linear1", metavar="MODULE", help="first linear layer of vrp_2linear")
        one.add_argument("--linear2", metavar="MODULE", help="second linear layer of vrp_2linear")
        one.add_argument("--backbone", default="", help="its name, if the checkpoint has none")
        one.add_argument(
            "--sam", default="vit_h", help="the SAM it was trained with (default: vit_h)"
        )


def sam(args: argparse.Namespace) -> None:
    """Converts a SAM checkpoint."""
    from prosam_jax.convert import sam_to_flax

    sam_to_flax.convert(args.model, args.checkpoint, args.out)


def backbone(args: argparse.Namespace) -> None:
    """Converts a backbone checkpoint."""
    from prosam_jax.convert import backbone_to_flax

    backbone_to_flax.convert(args.model, args.checkpoint, args.out)


def vrp_sam(args: argparse.Namespace) -> None:
    """Converts a VRP-SAM or ProSAM checkpoint to a prompt encoder."""
    from prosam_jax.convert import vrp_sam_to_flax

    given = {
        "mean": args.mean_head,
        "log_scale": args.scale_head,
        "linear1": args.linear1,
        "linear2": args.linear2,
    }
    vrp_sam_to_flax.convert(
        args.checkpoint,
        args.out,
        distribution=args.distribution,
        heads={head: module for head, module in given.items() if module},
        backbone_name=args.backbone,
        sam=args.sam,
    )
