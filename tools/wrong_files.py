"""Wrong checkpoints, tried one by one, and the message of the command for each."""

import contextlib
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import torch

from prosam_jax import cli
from torch_models import dinov2, resnet, sam, vgg

COMMANDS = {"backbone": "backbone", "sam": "sam", "vrp_sam": "vrp-sam"}


class Case(NamedTuple):
    """A wrong file.

    Attributes:
        what: What it is.
        command: A key of `COMMANDS`.
        model: Value of its `--model`, "" if it has no such flag.
        name: Name of the file.
        write: Writes the file.
    """

    what: str
    command: str
    model: str
    name: str
    write: Callable[[pathlib.Path], object]


def _named(build: Callable[[], torch.nn.Module], **changes: torch.Tensor | None):
    """Writes a checkpoint with the right names and shapes, each tensor stored as one zero."""

    def write(path: pathlib.Path) -> None:
        with torch.device("meta"):
            state = build().state_dict()
        zeros = {name: torch.zeros(()).expand(x.shape) for name, x in state.items()}
        torch.save({name: x for name, x in (zeros | changes).items() if x is not None}, path)

    return write


class _Trainer:
    """Stands for the objects that careless training scripts save whole."""


CASES = (
    Case(
        "torchvision's ResNet-50 for the deep stem",
        "backbone",
        "resnet50",
        "resnet50-0676ba61.pth",
        _named(lambda: resnet.ResNet((3, 4, 6, 3), deep_stem=False)),
    ),
    Case(
        "the deep-stem ResNet-50 for torchvision's",
        "backbone",
        "resnet50_torchvision",
        "resnet50_v2.pth",
        _named(lambda: resnet.ResNet((3, 4, 6, 3), deep_stem=True)),
    ),
    Case(
        "ResNet-101 for ResNet-50",
        "backbone",
        "resnet50",
        "resnet101_v2.pth",
        _named(lambda: resnet.ResNet((3, 4, 23, 3), deep_stem=True)),
    ),
    Case(
        "VGG-16 with batch norm for the one without",
        "backbone",
        "vgg16",
        "vgg16_bn-6c64b313.pth",
        _named(lambda: vgg.VGG(batch_norm=True)),
    ),
    Case(
        "DINOv2 with registers",
        "backbone",
        "dinov2_vitb14",
        "dinov2_vitb14_reg4_pretrain.pth",
        _named(lambda: dinov2.DINOv2(768, 12, 12), register_tokens=torch.zeros(1, 4, 768)),
    ),
    Case(
        "another size of SAM",
        "sam",
        "vit_h",
        "sam_vit_b_01ec64.pth",
        _named(lambda: sam.published("vit_b")),
    ),
    Case(
        "SAM 2",
        "sam",
        "vit_b",
        "sam2_hiera_base_plus.pt",
        lambda path: torch.save(
            {"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(112, 3, 7, 7)}},
            path,
        ),
    ),
    Case(
        "a SAM as a backbone",
        "backbone",
        "resnet50",
        "sam_vit_b_01ec64.pth",
        _named(lambda: sam.published("vit_b")),
    ),
    Case(
        "a backbone as a prompt encoder",
        "vrp_sam",
        "",
        "resnet50_v2.pth",
        _named(lambda: resnet.ResNet((3, 4, 6, 3), deep_stem=True)),
    ),
    Case(
        "one tensor missing, one unknown",
        "backbone",
        "resnet50",
        "resnet50_v2.pth",
        _named(
            lambda: resnet.ResNet((3, 4, 6, 3), deep_stem=True),
            **{"layer2.1.bn3.bias": None, "extra.weight": torch.zeros(3)},
        ),
    ),
    Case(
        "NaN",
        "backbone",
        "vgg16_bn",
        "vgg16_bn.pth",
        _named(
            lambda: vgg.VGG(batch_norm=True), **{"features.0.bias": torch.full((64,), torch.nan)}
        ),
    ),
    Case(
        "half a download",
        "backbone",
        "resnet50",
        "resnet50_v2.pth",
        lambda path: (torch.save({"w": torch.zeros(999)}, path), _halve(path)),
    ),
    Case(
        "a web page",
        "backbone",
        "resnet50",
        "resnet50_v2.pth",
        lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"),
    ),
    Case(
        "a Git LFS pointer",
        "backbone",
        "resnet50",
        "resnet50_v2.pth",
        lambda path: path.write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 102530333\n"
        ),
    ),
    Case(
        "the index of a checkpoint in parts",
        "sam",
        "vit_h",
        "model.safetensors.index.json",
        lambda path: path.write_text(
            '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}'
        ),
    ),
    Case(
        "a server's refusal",
        "sam",
        "vit_h",
        "sam_vit_h_hf.safetensors",
        lambda path: path.write_text('{"error": "Access to this model is restricted."}'),
    ),
    Case(
        "a checkpoint in a zip archive",
        "backbone",
        "resnet50",
        "resnet50_v2.pth",
        lambda path: _zipped(path, "weights/resnet50_v2.pth"),
    ),
    Case(
        "TorchScript",
        "backbone",
        "resnet50",
        "traced.pt",
        lambda path: _zipped(path, "traced/data.pkl", "traced/constants.pkl"),
    ),
    Case(
        "8-bit floats",
        "backbone",
        "resnet50",
        "resnet50_fp8.pth",
        lambda path: torch.save({"conv1.weight": torch.ones(3).to(torch.float8_e4m3fn)}, path),
    ),
    Case(
        "a model that was never loaded",
        "backbone",
        "resnet50",
        "resnet50_v2.pth",
        lambda path: torch.save({"conv1.weight": torch.ones(3, device="meta")}, path),
    ),
    Case(
        "a pickled object",
        "vrp_sam",
        "",
        "last.pt",
        lambda path: torch.save({"trainer": _Trainer()}, path),
    ),
    Case("a pickle of a list", "vrp_sam", "", "log.pt", lambda path: path.write_bytes(
        pickle.dumps([1, 2, 3], protocol=2)
    )),
    Case("no file", "sam", "vit_h", "sam_vit_h_4b8939.pth", lambda path: None),
)  # fmt: skip


def message(case: Case, folder: pathlib.Path) -> str:
    """Writes the wrong file into `folder`, runs its command and returns the error printed."""
    path = folder / case.name
    case.write(path)
    flags = ["--checkpoint", str(path), "--out", str(folder / "out.safetensors")]
    if case.model:
        flags += ["--model", case.model]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = cli.main(["weights", "convert", COMMANDS[case.command], *flags])
    path.unlink(missing_ok=True)
    if status != 1 or (folder / "out.safetensors").exists():
        raise AssertionError(f"{case.what} was accepted")
    return errors.getvalue().replace(f"{folder}/", "").strip()


def _zipped(path: pathlib.Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


def _halve(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
