r"""Converts a checkpoint of `segment_anything` to the weight file of `prosam_jax.sam`.

    python convert/sam_to_flax.py --model vit_h \
        --checkpoint sam_vit_h_4b8939.pth --out weights/sam_vit_h.safetensors

The checkpoints are at https://dl.fbaipublicfiles.com/segment_anything/ under the names
sam_vit_h_4b8939.pth, sam_vit_l_0b3195.pth and sam_vit_b_01ec64.pth.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from convert import command, torch_files
from convert.engine import Rule, conv, conv_transpose, linear
from prosam_jax.config import SAM_MODELS, SAMConfig, check_choice
from prosam_jax.sam.model import Sam

# The modules' names are torch's; what changes is the name of the leaf and its layout.
RULES = (
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


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the SAM called `model`.

    Raises:
        ValueError: The checkpoint cannot be read or is not of that SAM.
    """
    check_choice("--model", model, SAM_MODELS)
    cfg = SAMConfig.named(model)
    source = torch_files.read(checkpoint)
    _check_size(checkpoint, source.tensors, model)
    command.write(
        source,
        out,
        kind="sam",
        architecture=model,
        build=lambda rngs: Sam(cfg, rngs=rngs),
        rules=RULES,
    )


def _check_size(path: pathlib.Path, tensors: Mapping[str, np.ndarray], model: str) -> None:
    patches = "image_encoder.patch_embed.proj.weight"
    if patches not in tensors:
        names = ", ".join(list(tensors)[:3])
        raise ValueError(f"{path} is no SAM: it has no {patches}, but {names} ...")
    blocks = {name.split(".")[2] for name in tensors if name.startswith("image_encoder.blocks.")}
    found = tensors[patches].shape[0], len(blocks)
    sizes = {(SAMConfig.named(x).embed_dim, SAMConfig.named(x).depth): x for x in SAM_MODELS}
    if sizes.get(found) != model:
        held = sizes.get(found, "a SAM of unknown size")
        mend = f"pass --model {held}" if found in sizes else f"known: {', '.join(SAM_MODELS)}"
        raise ValueError(
            f"{path} holds {held} (embed_dim {found[0]}, depth {found[1]}), but --model says "
            f"{model}: {mend}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = command.parser(__doc__)
    parser.add_argument("--model", required=True, help=f"one of {', '.join(SAM_MODELS)}")
    args = parser.parse_args(argv)
    return command.exit_status(lambda: convert(args.model, args.checkpoint, args.out))


if __name__ == "__main__":
    sys.exit(main())
