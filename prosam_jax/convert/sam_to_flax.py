"""Converts a checkpoint of SAM, in Meta's or Hugging Face's layout, to a weight file."""

import pathlib
import re
from collections.abc import Mapping

import numpy as np

from prosam_jax.config import SAM_MODELS, SAMConfig, check_choice
from prosam_jax.convert import recognise, torch_files
from prosam_jax.convert.engine import Ignored
from prosam_jax.convert.rules.sam import HF_POSITIONS, HF_RULES, META_RULES
from prosam_jax.convert.weight_file import write
from prosam_jax.errors import UserError
from prosam_jax.sam.model import Sam


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the SAM called `model`.

    Raises:
        UserError: The checkpoint cannot be read or is not one of that SAM.
    """
    check_choice("--model", model, SAM_MODELS)
    cfg = SAMConfig.named(model)
    source = torch_files.read(checkpoint)
    recognise.require(checkpoint, source.tensors, "sam", model)
    is_hf = any(name.startswith("vision_encoder.") for name in source.tensors)
    write(
        source,
        out,
        kind="sam",
        architecture=model,
        build=lambda rngs: Sam(cfg, rngs=rngs),
        rules=HF_RULES if is_hf else META_RULES,
        ignored=_copies(checkpoint, source.tensors),
    )


def _copies(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> list[Ignored]:
    """The second of two names under which transformers may save the position matrix."""
    one, other = HF_POSITIONS
    if one not in tensors or other not in tensors:
        return []
    if not np.array_equal(tensors[one], tensors[other]):
        raise UserError(
            f"{path} is damaged: {one} and {other} differ, but SAM has one matrix; download it "
            "again"
        )
    return [Ignored(re.escape(other), f"the same numbers as {one}")]
