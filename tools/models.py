"""Writes docs/models.md: every model, where its weights come from, and its distance to PyTorch.

    python -m tools.models --pictures VOC2012/JPEGImages

The run measures everything in the document. It takes about ten minutes on two cores, and 3 GB of
disk for a random checkpoint of SAM ViT-H's size.
"""

import argparse
import dataclasses
import datetime
import importlib
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from prosam_jax import backbone, resize
from prosam_jax.backbone.efficientnet_lite import EfficientNetLite
from prosam_jax.config import BackboneConfig, SAMConfig
from prosam_jax.convert import backbone_to_flax, engine
from prosam_jax.convert.rules.sam import META_RULES
from prosam_jax.images import load
from prosam_jax.sam.model import Sam
from prosam_jax.weights import download, registry
from prosam_jax.weights import files as weights_files
from tools import wrong_files
from torch_models import dinov2, efficientnet_lite, resnet, sam, vgg

OUT = pathlib.Path("docs/models.md")
SEED = 0
SIZE = 129, 161  # odd, different, no multiples of any patch or stride
SAM_SIZE = 272, 400  # 17 x 25 patches, which windows of 14 do not divide
PICTURE_SIZE = 224  # EfficientNet-Lite0's own
TWINS: dict[str, Callable[[int], torch.nn.Module]] = {
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet50_torchvision": resnet.resnet50_torchvision,
    "resnet101_torchvision": resnet.resnet101_torchvision,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "dinov2_vits14": dinov2.vits14,
    "dinov2_vitb14": dinov2.vitb14,
    "dinov2_vitl14": dinov2.vitl14,
    "dinov2_vitl14_reg": dinov2.vitl14_reg,
    "efficientnet_lite0": efficientnet_lite.dilated_lite0,
}


def distance(found: list[jax.Array], wanted: list[torch.Tensor]) -> tuple[float, float]:
    """Largest difference of several pairs, absolute and over each array's largest value."""
    absolute, relative = 0.0, 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        difference = float(np.abs(np.asarray(ours) - theirs.numpy()).max())
        absolute = float(np.maximum(absolute, difference))  # NaN if any is
        relative = float(np.maximum(relative, difference / float(theirs.abs().max())))
    return absolute, relative


def compare_backbone(name: str) -> str:
    """A backbone's row: both taps of an image of `SIZE`, with random weights, converted."""
    twin = TWINS[name](SEED)
    table = backbone_to_flax.TABLES[name]
    ours = _filled(
        lambda rngs: backbone.build(BackboneConfig.of(name=name), rngs=rngs),
        twin,
        table.rules,
        table.ignored,
    )
    images = np.random.default_rng(SEED).standard_normal((1, *SIZE, 3), np.float32)
    with torch.no_grad():
        wanted = [x.permute(0, 2, 3, 1) for x in twin(_nchw(images))]
    taps = jax.jit(backbone.target_taps)(ours, images)
    return _row(f"`{name}`", "backbone", name, ours, SIZE, distance(list(taps), wanted))


def compare_sam(name: str) -> str:
    """A SAM's row: image embedding, mask logits, expected IoU of a click, with random weights."""
    cfg = dataclasses.replace(SAMConfig.named(name), image_size=SAM_SIZE)
    twin = sam.build(cfg, SEED)
    ours = _filled(lambda rngs: Sam(cfg, rngs=rngs), twin, META_RULES, ())
    images = np.random.default_rng(SEED).standard_normal((1, *SAM_SIZE, 3), np.float32)
    points, labels = np.array([[[201.0, 77.0]]], np.float32), np.array([[1]], np.int32)
    with torch.no_grad():
        embedding = twin.image_encoder(_nchw(images))
        sparse, dense = twin.prompt_encoder(
            points=(torch.tensor(points), torch.tensor(labels)), boxes=None, masks=None
        )
        pe = twin.prompt_encoder.get_dense_pe()
        logits, iou = twin.mask_decoder(embedding, pe, sparse, dense, multimask_output=True)

    @jax.jit
    def run(ours, images, points, labels):
        embedding = ours.encode_image(images)
        sparse, dense = ours.prompt_encoder(points=points, labels=labels)
        return embedding, *ours.decode(embedding, sparse, dense, multimask_output=True)

    found = list(run(ours, images, points, labels))
    wanted = [embedding.permute(0, 2, 3, 1), logits, iou]
    return _row(f"SAM `{name}`", "sam", name, ours, SAM_SIZE, distance(found, wanted))


def classify_pictures(folder: pathlib.Path) -> str:
    """Classes that both versions of the published EfficientNet-Lite0 give to real pictures."""
    published = registry.named("efficientnet_lite0")
    with tempfile.TemporaryDirectory() as temporary:
        path = download.fetch(published, pathlib.Path(temporary)).path
        twin = efficientnet_lite.lite0()
        twin.load_state_dict(torch.load(path, weights_only=True))
    table = backbone_to_flax.TABLES["efficientnet_lite0"]
    ours = _filled(lambda rngs: EfficientNetLite(rngs=rngs), twin, table.rules, table.ignored)
    classify = jax.jit(EfficientNetLite.classify)
    paths = sorted(folder.glob("*.jpg"))
    equal, furthest = 0, 0.0
    for path in paths:
        picture = load(path).resize((PICTURE_SIZE, PICTURE_SIZE))
        pixels = np.asarray(picture)[None]
        with torch.no_grad():
            wanted = twin(efficientnet_lite.normalized(pixels)).numpy()
        found = np.asarray(classify(ours, resize.normalize(jnp.asarray(pixels))))
        equal += int(found.argmax() == wanted.argmax())
        furthest = max(furthest, float(np.abs(found - wanted).max()))
    return (
        f"EfficientNet-Lite0 with its published weights on {len(paths)} pictures of VOC 2012 at "
        f"{PICTURE_SIZE} x {PICTURE_SIZE}: the top-1 class equals that of the package "
        f"`efficientnet-lite-pytorch` on {equal}; logits differ by at most {furthest:.1e}."
    )


def convert_vit_h() -> str:
    """Time and memory taken to convert a random checkpoint of ViT-H's size."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, out = (pathlib.Path(temporary) / name for name in ("h.pth", "h.safetensors"))
        torch.save(sam.published("vit_h").state_dict(), checkpoint)
        command = ["convert/sam_to_flax.py", "--model", "vit_h", "--checkpoint", str(checkpoint)]
        start = time.monotonic()
        subprocess.run(
            [sys.executable, *command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.monotonic() - start
        # Linux counts in KiB. The conversion is by far the largest of this run's children.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return (
            f"A checkpoint of SAM ViT-H's size ({checkpoint.stat().st_size:,} bytes, random) is "
            f"converted in {seconds:.0f} s with a peak of {peak / 1e9:.1f} GB, which includes "
            "the checkpoint's mapped pages."
        )


def get_vit_b() -> str:
    """Time and memory of `prosam weights get sam_vit_b`, from a hub on this machine.

    The repository has a random SAM ViT-B as transformers saves it.
    """
    from transformers import SamConfig, SamModel

    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
    fake_hub = importlib.import_module("fake_hub")  # of the tests

    with tempfile.TemporaryDirectory() as temporary, fake_hub.running() as hub:
        SamModel(SamConfig()).save_pretrained(temporary)
        content = pathlib.Path(temporary, "model.safetensors").read_bytes()
        repository, file = registry.on_hub("sam", "vit_b").hub or ("", "")
        hub.files[repository], hub.private[repository] = {file: content}, False
        hub.sha(repository)  # the checksum that a real hub knows beforehand
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(pathlib.Path(temporary, "home")),
            "HF_TOKEN": fake_hub.TOKEN,
            "NO_PROXY": "127.0.0.1",
        }
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "weights", "get", "sam_vit_b"],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds = time.monotonic() - start
    cpu, peak = done.stdout.split()[-2:]
    return (
        f"`prosam weights get sam_vit_b` took {seconds:.0f} s ({float(cpu):.0f} s of a core) on "
        f"{datetime.date.today()}, with a peak of {int(peak) * 1024 / 1e9:.1f} GB, for "
        f"{len(content):,} random bytes in Hugging Face's layout from a hub on the same machine. "
        "The peak includes the file's mapped pages, and both include JAX, which gives the "
        "network's shapes."
    )


MEASURED = """
import pathlib, re, sys, time
from prosam_jax import cli
status = cli.main(sys.argv[1:])
# A process's own peak in KiB; that of resource.getrusage is its parent's, if that is higher.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
print(time.process_time(), peak)
sys.exit(status)
"""
"""`prosam`, which also prints its seconds of a core and its peak memory."""


def _filled(build, twin: torch.nn.Module, rules, ignored) -> Any:
    source = {name: x.numpy() for name, x in twin.state_dict().items()}
    return engine.filled(build, source, rules, ignored)


def _nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def checkpoints(kind: str, name: str) -> str:
    """The columns of a row that say where a network's weights are, and on which terms."""
    entries = [x for x in registry.PUBLISHED if (x.kind, x.architecture) == (kind, name)]
    names = "<br>".join(
        f"{x.file}, {x.publisher}" + (" (no published checksum)" if x.sha256 is None else "")
        for x in entries
    )
    return f"{names} | {'<br>'.join(dict.fromkeys(x.licence for x in entries))}"


def _row(label, kind, name, module, size, differences) -> str:
    parameters = sum(x.size for x in weights_files.leaves(module).values())
    absolute, relative = differences
    print(f"{name}: {absolute:.1e} {relative:.1e}", flush=True)
    return (
        f"| {label} | {parameters / 1e6:,.1f} M | {checkpoints(kind, name)} | "
        f"{size[0]} x {size[1]} | {absolute:.1e} | {relative:.1e} |"
    )


def _on_hub() -> str:
    return "\n".join(
        f"| `{x.name.removesuffix('_hf')}` | {x.hub[0]} | {x.licence} |"
        for x in registry.PUBLISHED
        if x.hub
    )


def _wrong_files() -> str:
    lines = ["| file | what the command says |", "|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        for case in wrong_files.CASES:
            said = wrong_files.message(case, pathlib.Path(temporary)).replace("|", "\\|")
            lines.append(f"| {case.what} | {said.replace(chr(10), '<br>')} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=pathlib.Path, required=True, help="folder of .jpg files")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    models = [compare_sam(name) for name in ("vit_b", "vit_l", "vit_h")]
    models += [compare_backbone(name) for name in TWINS]
    text = TEXT.format(
        date=datetime.date.today(),
        jax=jax.__version__,
        torch=torch.__version__,
        device=f"{os.cpu_count()} CPU cores",
        models="\n".join(models),
        pictures=classify_pictures(args.pictures),
        vit_h=convert_vit_h(),
        vit_b=get_vit_b(),
        on_hub=_on_hub(),
        wrong_files=_wrong_files(),
    )
    args.out.write_text(text)
    print(f"wrote {args.out}")


TEXT = """# Models

Made by `python -m tools.models --pictures VOC2012/JPEGImages` on
{date}: jax {jax}, torch {torch}, {device}, float32.

## Where the weights come from, and how far the numbers are from PyTorch's

Differences are the largest over all outputs, with random weights converted by the converter's
rules. Outputs are both taps for backbones, and the image embedding, mask logits and expected IoU of
a click for SAM. "Relative" is over the largest value of the array. `prosam weights list` shows
sizes and checksums; `prosam weights fetch NAME` fetches a checkpoint, checks it and prints the
command that converts it.

| model | parameters | checkpoints | licence | input | max. difference | relative |
|---|---|---|---|---|---|---|
{models}

SAM is compared with `segment-anything`, EfficientNet-Lite0 with `efficientnet-lite-pytorch`
(dilated in the same way), and the others with the plain PyTorch networks in `torch_models/`, whose
tensors have the checkpoints' names. The tests also compare DINOv2's network, and SAM's files in
Hugging Face's layout, with `transformers`.

{pictures}

{vit_h}

## From a hub

`prosam weights get NAME`, the value "hub" of `sam.weights` and `backbone.weights`, and
`from_pretrained` where `weights/` has no file, fetch these with the package `huggingface_hub` and
convert them without torch:

| name | repository on the Hugging Face hub | licence |
|---|---|---|
{on_hub}

All are `model.safetensors`. Where this library knows the checksum that the hub showed for a file,
it refuses another one; of every file, the client compares the checksum that the hub tells. The
client keeps the file, and what is made of it lies beside that in the client's assets, by default
`~/.cache/huggingface/assets/prosam_jax/weights`; every load checks it. `HF_HOME`, `HF_ENDPOINT` (a
mirror), `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to the client. The deep-stem ResNets
and EfficientNet-Lite0 are not on the hub.

The hub itself was not reachable when this was made: names of tensors are those that `transformers`
saves and `timm`'s code has, tried with random weights.

{vit_b}

## Which features a backbone gives

| model | merged (reduced by the prompt encoder) | prior (makes the pseudo mask) | stride |
|---|---|---|---|
| ResNet | layers 2 and 3, 1,536 channels | layer 4 of the masked layer 3 | 8 |
| VGG-16 | layers 2 (resized) and 3, 768 channels | layer 4 of the masked layer 3 | 16 |
| DINOv2 S, B | blocks 6 and 9 of 12, normalised, 768 or 1,536 channels | block 12, masked | 14 |
| DINOv2 L, `_reg` | blocks 12 and 18 of 24, normalised, 2,048 channels | block 24, masked | 14 |
| EfficientNet-Lite0 | stages 3 and 5, 152 channels | stage 7 of the masked stage 5 | 8 |

Images for DINOv2 are resized to the nearest whole number of patches: 512 x 512 becomes 518 x 518,
the size of its own training. The paper's Table 5 does not say which features it uses, and VRP-SAM's
code has no DINOv2. The blocks named here end the second, third and last quarter, as in DINOv2's own
depth heads. With ViT-B the two merged ones have exactly ResNet-50's 1,536 channels, so the learned
part keeps its size.

## Wrong files

This run made and tried each of them. A command that refuses a file writes nothing.

{wrong_files}
"""

if __name__ == "__main__":
    main()
