r"""Converts a semantic backbone's torch checkpoint to the weight file of `prosam_jax.backbone`.

    python convert/backbone_to_flax.py --model resnet50 \
        --checkpoint resnet50_v2.pth --out weights/resnet50.safetensors

"resnet50" is the ResNet-50 with three 3x3 convolutions in its stem that semseg publishes as
resnet50_v2.pth and few-shot segmentation (PFENet, VRP-SAM) builds on. A VRP-SAM checkpoint holds
the same network, with the stem under the names layer0.*, and is taken as well.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from convert import command, torch_files
from convert.engine import Ignored, Rule, conv
from prosam_jax.backbone.resnet import resnet50
from prosam_jax.config import check_choice

MODELS = ("resnet50",)
NORM = "(weight|bias|running_mean|running_var)"
RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "ResNet-50",
    (3, 4, 23, 3): "ResNet-101",
    (3, 8, 36, 3): "ResNet-152",
}

RULES = (
    Rule(r"(?:conv1|layer0\.0)\.weight", "stem.0.conv.kernel", conv),
    Rule(r"(?:conv2|layer0\.3)\.weight", "stem.1.conv.kernel", conv),
    Rule(r"(?:conv3|layer0\.6)\.weight", "stem.2.conv.kernel", conv),
    Rule(rf"(?:bn1|layer0\.1)\.{NORM}", r"stem.0.bn.\1"),
    Rule(rf"(?:bn2|layer0\.4)\.{NORM}", r"stem.1.bn.\1"),
    Rule(rf"(?:bn3|layer0\.7)\.{NORM}", r"stem.2.bn.\1"),
    Rule(r"(layer[1-4]\.\d+\.conv[123])\.weight", r"\1.conv.kernel", conv),
    Rule(rf"(layer[1-4]\.\d+)\.bn([123])\.{NORM}", r"\1.conv\2.bn.\3"),
    Rule(r"(layer[1-4]\.\d+\.downsample)\.0\.weight", r"\1.conv.kernel", conv),
    Rule(rf"(layer[1-4]\.\d+\.downsample)\.1\.{NORM}", r"\1.bn.\2"),
)
IGNORED = (
    Ignored(r".*\.num_batches_tracked", "a counter of training that no prediction reads"),
    Ignored(r"fc\.(weight|bias)", "the classifier, which features do not need"),
    Ignored(
        r"(downsample_query|merge_1|transformer_decoder)\..*",
        "VRP-SAM's learned part, which convert/vrp_sam_to_flax.py takes",
    ),
)


def convert(model: str, checkpoint: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `out`, the weight file of the backbone called `model`.

    Raises:
        ValueError: The checkpoint cannot be read or is not of that backbone.
    """
    check_choice("--model", model, MODELS)
    source = torch_files.read(checkpoint)
    _check_architecture(checkpoint, source.tensors)
    command.write(
        source,
        out,
        kind="backbone",
        architecture=model,
        build=lambda rngs: resnet50(rngs=rngs),
        rules=RULES,
        ignored=IGNORED,
    )


def _check_architecture(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    stages = [
        {name.split(".")[1] for name in tensors if name.startswith(f"layer{i}.")} for i in "1234"
    ]
    blocks = tuple(len(stage) for stage in stages)
    if "layer1.0.conv3.weight" not in tensors:
        names = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"{path} is no ResNet-50: it has no layer1.0.conv3.weight, but {names} ..."
        )
    if RESNETS.get(blocks) != "ResNet-50":
        raise ValueError(
            f"{path} is {RESNETS.get(blocks, 'no ResNet-50')}: layer1 to layer4 have {blocks} "
            "blocks, a ResNet-50 has (3, 4, 6, 3); pass resnet50_v2.pth"
        )
    stem = tensors.get("conv1.weight")
    if stem is not None and stem.shape[2:] == (7, 7):
        raise ValueError(
            f"{path} is torchvision's ResNet-50: its stem is one 7x7 convolution, that of "
            "--model resnet50 three of 3x3; pass resnet50_v2.pth"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = command.parser(__doc__)
    parser.add_argument("--model", required=True, help=f"one of {', '.join(MODELS)}")
    args = parser.parse_args(argv)
    return command.exit_status(lambda: convert(args.model, args.checkpoint, args.out))


if __name__ == "__main__":
    sys.exit(main())
