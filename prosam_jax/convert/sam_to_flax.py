"""Converts a checkpoint of SAM, in Meta's or Hugging Face's layout, to a weight file."""

import pathlib

from prosam_jax.config import SAM_MODELS, SAMConfig, check_choice
from prosam_jax.convert import layouts, torch_files
from prosam_jax.convert.weight_file import write
from prosam_jax.sam.model import Sam


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the SAM called `model`.

    Raises:
        UserError: The checkpoint cannot be read or is not one of that SAM.
    """
    check_choice("--model", model, SAM_MODELS)
    cfg = SAMConfig.named(model)
    source = torch_files.read(checkpoint)
    table = layouts.table(checkpoint, source.tensors, "sam", model)
    write(
        source,
        out,
        kind="sam",
        architecture=model,
        build=lambda rngs: Sam(cfg, rngs=rngs),
        rules=table.rules,
        ignored=table.ignored,
    )
