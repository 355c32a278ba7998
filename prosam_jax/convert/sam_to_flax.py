r"""Converts a checkpoint of SAM to the weight file of `prosam_jax.sam`.

    prosam weights convert sam --model vit_h \
        --checkpoint sam_vit_h_4b8939.pth --out weights/sam_vit_h.safetensors

Meta's checkpoints are at https://dl.fbaipublicfiles.com/segment_anything/ under the names
sam_vit_h_4b8939.pth, sam_vit_l_0b3195.pth and sam_vit_b_01ec64.pth. The model.safetensors (or
pytorch_model.bin) of facebook/sam-vit-huge, -large and -base on Hugging Face is taken as well;
which of the two layouts a file has shows in its names.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from prosam_jax.config import SAM_MODELS, SAMConfig, check_choice
from prosam_jax.convert import command, recognise, torch_files
from prosam_jax.convert.engine import Ignored
from prosam_jax.convert.rules.sam import HF_POSITIONS, HF_RULES, META_RULES
from prosam_jax.errors import UserError
from prosam_jax.sam.model import Sam


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the SAM called `model`.

    Raises:
        UserError: The checkpoint cannot be read or is not of that SAM.
    """
    check_choice("--model", model, SAM_MODELS)
    cfg = SAMConfig.named(model)
    source = torch_files.read(checkpoint)
    recognise.require(checkpoint, source.tensors, "sam", model)
    is_hf = any(name.startswith("vision_encoder.") for name in source.tensors)
    command.write(
        source,
        out,
        kind="sam",
        architecture=model,
        build=lambda rngs: Sam(cfg, rngs=rngs),
        rules=HF_RULES if is_hf else META_RULES,
        ignored=_copies(checkpoint, source.tensors),
    )


def _copies(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> list[Ignored]:
    """The second of the two names under which transformers may save the position matrix."""
    one, other = HF_POSITIONS
    if one not in tensors or other not in tensors:
        return []
    if not np.array_equal(tensors[one], tensors[other]):
        raise UserError(
            f"{path} is damaged: {one} and {other} differ, but SAM has one matrix; download it "
            "again"
        )
    return [Ignored(re.escape(other), f"the same numbers as {one}")]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command."""
    parser = command.parser(__doc__, prog)
    parser.add_argument("--model", required=True, help=f"one of {', '.join(SAM_MODELS)}")
    args = parser.parse_args(argv)
    return command.exit_status(lambda: convert(args.model, args.checkpoint, args.out))
