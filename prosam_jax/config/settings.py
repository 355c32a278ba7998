"""All settings of a run, as frozen dataclasses."""

import dataclasses
import os
import pathlib
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from prosam_jax.config.checks import nearest
from prosam_jax.config.choices import (
    BACKBONES_ON_HUB,
    HUB,
    PACKAGED,
    SAMS_ON_HUB,
    Annotation,
    Attention,
    Backbone,
    CacheDType,
    Dataset,
    Distribution,
    Draws,
    DType,
    Objective,
    SAMModel,
    Scale,
)
from prosam_jax.config.fields import Group, Role, flat, setting, unread
from prosam_jax.config.sam import SAMConfig
from prosam_jax.errors import UserError, cut, short

_SAMPLED = ("distribution.name", ("gaussian", "student_t", "t3vae"))
_HEAVY_TAILED = ("distribution.name", ("student_t", "t3vae"))
_FROM_FILES = ("data.name", ("pascal", "coco", "fss", "folder"))
_LISTED = ("data.name", ("pascal", "coco", "folder"))
_FOLDED = ("data.name", ("pascal", "coco", "shapes", "folder"))
_OWN_FOLDER = ("data.name", ("folder",))


def packaged(kind: str, name: str) -> str:
    """Path of a weight file that comes with the package."""
    return str(pathlib.Path(__file__).parents[1] / "pretrained" / f"{kind}_{name}.safetensors")


def network_name(kind: str, name: str) -> str:
    """What `prosam weights get` calls a network: "sam_vit_b", or a backbone's own name.

    Args:
        kind: "sam" or "backbone".
        name: Value of `sam.model` or `backbone.name`.
    """
    return f"sam_{name}" if kind == "sam" else name


def hub_file(kind: str, name: str) -> str:
    """Path of the weight file that is made of weights from a hub.

    It is among the assets of Hugging Face's client, so that HF_HOME moves it too.

    Args:
        kind: "sam" or "backbone".
        name: Value of `sam.model` or `backbone.name`.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(root, "huggingface")
    assets = os.environ.get("HF_ASSETS_CACHE") or os.path.join(home, "assets")
    folder = os.path.expandvars(os.path.expanduser(assets))
    return os.path.join(folder, "prosam_jax", "weights", f"{network_name(kind, name)}.safetensors")


def _check_source(setting: str, value: str, owner: str, name: str, on_hub: tuple[str, ...]) -> None:
    if value == PACKAGED and name != "shapes":
        raise UserError(
            f"{setting}={PACKAGED} needs {owner}=shapes, not {name}: no other weights come with "
            "the package"
        )
    if value == HUB and name not in on_hub:
        raise UserError(
            f"{setting}={HUB} needs {owner} to be one of {', '.join(on_hub)}, not {name}, which "
            "is not on the hub: `prosam weights list` shows where published weights are"
        )


@dataclasses.dataclass(frozen=True)
class SAMSettings(Group):
    """Which SAM is used; it is frozen in training.

    Attributes:
        model: The size: "vit_b", "vit_l" or "vit_h" are the published ones, "shapes" is small and
            comes with the package, "tiny" is for tests and trials.
        weights: A `.safetensors` file made by `prosam weights convert` (`{model}` stands for the
            model's name), "hub" for the published weights, which are fetched from the Hugging
            Face hub when they are first needed, "packaged" for the file that comes with the package
            (model "shapes" only), or "random".
        image_size: Side in pixels of the square that target images are resized to; 0 for the
            model's own. Published weights only work with 1024.
        dtype: Type of the activations of SAM's encoder and mask decoder.
        attention: How SAM's ViT computes attention: "plain" works on any device; "cudnn" uses
            cuDNN's flash attention, which needs "bfloat16" and a Hopper or newer GPU; "auto" uses
            that where it can.
    """

    PREFIX: ClassVar[str] = "sam."

    model: SAMModel = setting("vit_h", Role.ARCHITECTURE)
    weights: str = setting("weights/sam_{model}.safetensors", Role.PATH)
    image_size: int = setting(0, Role.ARCHITECTURE, least=0, most=4096)
    dtype: DType = setting("float32", Role.PROTOCOL)
    attention: Attention = setting("auto", Role.PROTOCOL)

    def __post_init__(self) -> None:
        """Checks what the ranges of the fields cannot express."""
        super().__post_init__()
        if self.image_size % 16:
            raise UserError(f"sam.image_size={self.image_size} must be 0 or a multiple of 16")
        _check_source("sam.weights", self.weights, "sam.model", self.model, SAMS_ON_HUB)

    @property
    def on_hub(self) -> bool:
        """Whether the weights may be "hub"."""
        return self.model in SAMS_ON_HUB

    def weight_file(self) -> str:
        """The path that `weights` stands for; "random" stays as it is."""
        if self.weights == PACKAGED:
            return packaged("sam", self.model)
        if self.weights == HUB:
            return hub_file("sam", self.model)
        return self.weights.replace("{model}", self.model)

    def architecture(self) -> SAMConfig:
        """The architecture that these settings describe."""
        cfg = SAMConfig.named(self.model)
        size = (self.image_size, self.image_size) if self.image_size else cfg.image_size
        return dataclasses.replace(cfg, image_size=size, dtype=self.dtype, attention=self.attention)


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Group):
    """Which semantic backbone feeds the prompt encoder; it is frozen in training.

    Attributes:
        name: "resnet50" and "resnet101" have the deep stem of the checkpoints of semseg and PFENet,
            as in the paper; "shapes" is small and comes with the package; "tiny" is for tests and
            trials.
        weights: A `.safetensors` file made by `prosam weights convert` (`{name}` stands for the
            backbone's name), "hub" for published weights, which are fetched from the Hugging Face
            hub when they are first needed (DINOv2's and torchvision's), "packaged" for the file
            that comes with the package (name "shapes" only), or "random".
        dtype: Type of its activations; the features that leave it are float32.
    """

    PREFIX: ClassVar[str] = "backbone."

    name: Backbone = setting("resnet50", Role.ARCHITECTURE)
    weights: str = setting("weights/{name}.safetensors", Role.PATH)
    dtype: DType = setting("float32", Role.PROTOCOL)

    def __post_init__(self) -> None:
        """Checks what the ranges of the fields cannot express."""
        super().__post_init__()
        _check_source(
            "backbone.weights", self.weights, "backbone.name", self.name, BACKBONES_ON_HUB
        )

    @property
    def on_hub(self) -> bool:
        """Whether the weights may be "hub"."""
        return self.name in BACKBONES_ON_HUB

    def weight_file(self) -> str:
        """The path that `weights` stands for; "random" stays as it is."""
        if self.weights == PACKAGED:
            return packaged("backbone", self.name)
        if self.weights == HUB:
            return hub_file("backbone", self.name)
        return self.weights.replace("{name}", self.name)


@dataclasses.dataclass(frozen=True)
class PromptConfig(Group):
    """The learned prompt encoder (paper, sections 3.2 and 8; VRP-SAM, arXiv 2402.17726).

    Attributes:
        dim: Width of features, queries and prompts; SAM's prompts are 256 wide.
        num_queries: Prompts per shot.
        num_heads: Attention heads of the query decoder.
        dropout: Fraction of reduced feature channels dropped in training, in [0, 1).
        normalize_prior: Whether the pseudo mask is min-max normalised per image. VRP-SAM's code
            does not do so; the paper's text allows it.
        weights: The trained prompt encoder that training starts from, a file made by `prosam
            export`; "" for initial parameters drawn from the seed.
    """

    PREFIX: ClassVar[str] = "prompt."

    dim: int = setting(256, Role.ARCHITECTURE, least=4, most=1024)
    num_queries: int = setting(50, Role.ARCHITECTURE, least=1, most=10_000)
    num_heads: int = setting(4, Role.ARCHITECTURE, least=1, most=1024)
    dropout: float = setting(0.5, Role.TRAINING, least=0, below=1)
    normalize_prior: bool = setting(False, Role.ARCHITECTURE)
    weights: str = setting("", Role.PATH)

    def __post_init__(self) -> None:
        """Checks what the ranges of the fields cannot express."""
        super().__post_init__()
        if self.dim % 4 or self.dim % self.num_heads:
            raise UserError(
                f"prompt.dim={self.dim} must be a multiple of 4 and of "
                f"prompt.num_heads={self.num_heads}"
            )


@dataclasses.dataclass(frozen=True)
class DistributionConfig(Group):
    """The distribution over prompts (Eq. 5-10).

    Attributes:
        name: "vrp" (deterministic, VRP-SAM), "vrp_2linear" (VRP-SAM with two more linear layers,
            Table 7), "gaussian" (Table 4), "student_t" (Eq. 5-7) or "t3vae" (arXiv 2312.01133).
        nu: Degrees of freedom of the t-distributions.
        samples: K of Eq. 10, the number of Monte Carlo samples per training step.
        sample_group: Samples that are decoded at once; 0 for two on a CPU, where more are slower,
            and all of them elsewhere. Memory grows with it; the result does not change.
        scale: What the head predicts: "absolute" for sigma itself, as in the paper; "relative" for
            sigma as a share of the root mean square of its prompt's mean; "fixed" for nothing,
            sigma being `init_scale` times that root mean square.
        init_scale: The initial scale sigma, around which the log-scale head is centred; 1 in the
            paper. On Shapes-5i, training learns nothing from 1 and works from 0.03. A share unless
            `scale` is "absolute".
        min_scale: A floor that is added to sigma, or to its share; 0 in the paper.
        entropy_weight: Weight of the mean log-scale, which is subtracted from the loss; 0 in the
            paper.
        prior_weight: Weight of the divergence of the distribution from a prior of the same mean,
            per dimension (`sampling.kl_to_prior`), which is added to the loss; 0 in the paper.
        prior_scale: Scale of that prior, as a share of the root mean square of each prompt's mean.
        objective: "monte_carlo" for Eq. 10; "laplacian" for its second-order expansion, Eq. 13: the
            loss of the mean and half the trace of the Hessian times the noise's variance, which
            `samples` random signs estimate.
        draws: How the noise of the K samples is drawn: "independent", as in the paper; "antithetic"
            for pairs of opposite noise; "stratified" for a Latin hypercube, in which each
            coordinate has one sample in each of K equally likely intervals.
        shared_delta: Whether all prompts of a sample share one delta of Eq. 6; each has its own in
            the paper.
    """

    PREFIX: ClassVar[str] = "distribution."

    name: Distribution = setting("student_t", Role.ARCHITECTURE)
    nu: float = setting(5.0, Role.TRAINING, above=0, read_with=_HEAVY_TAILED)
    samples: int = setting(10, Role.TRAINING, least=1, most=10_000, read_with=_SAMPLED)
    sample_group: int = setting(0, Role.SPEED, least=0, most=10_000, read_with=_SAMPLED)
    scale: Scale = setting("absolute", Role.ARCHITECTURE, read_with=_SAMPLED)
    init_scale: float = setting(1.0, Role.TRAINING, above=0, read_with=_SAMPLED)
    min_scale: float = setting(0.0, Role.TRAINING, least=0, read_with=_SAMPLED)
    entropy_weight: float = setting(0.0, Role.TRAINING, least=0, read_with=_SAMPLED)
    prior_weight: float = setting(0.0, Role.TRAINING, least=0, read_with=_SAMPLED)
    prior_scale: float = setting(
        0.1, Role.TRAINING, above=0, read_with=("distribution.prior_weight", None)
    )
    objective: Objective = setting("monte_carlo", Role.TRAINING, read_with=_SAMPLED)
    draws: Draws = setting("independent", Role.TRAINING, read_with=_SAMPLED)
    shared_delta: bool = setting(False, Role.TRAINING, read_with=_HEAVY_TAILED)

    def __post_init__(self) -> None:
        """Checks what the ranges of the fields cannot express."""
        super().__post_init__()
        if self.scale == "fixed":
            self._check_unset(
                "scale", ("min_scale", "entropy_weight", "prior_weight"), "learns no scale"
            )
        if self.objective == "laplacian":
            self._check_unset("objective", ("draws", "shared_delta"), "draws no samples")
            if self.name == "student_t" and self.nu <= 2:
                raise UserError(
                    f"distribution.nu={self.nu} must be above 2 with distribution.objective="
                    "laplacian: with 2 or less the noise has no variance"
                )

    def _check_unset(self, owner: str, names: tuple[str, ...], why: str) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise UserError(
                    f"distribution.{field.name}={value} does nothing with distribution.{owner}="
                    f"{getattr(self, owner)}, which {why}: leave it out, or change {owner}"
                )


@dataclasses.dataclass(frozen=True)
class DataConfig(Group):
    """The benchmark and how its files are read.

    Attributes:
        name: "pascal" (Pascal-5i), "coco" (COCO-20i), "fss" (FSS-1000), "shapes" (the generated
            Shapes-5i) or "folder" (a folder of your own).
        root: Folder of the dataset: for Pascal the one that contains `JPEGImages`, for COCO the
            one that contains `train2014`, for these two also a TFDS data directory made by `prosam
            prepare tfds`; for FSS-1000 the one that contains the folders of the classes.
        fold: The fold whose classes are kept for testing.
        shots: Reference images per episode.
        image_size: Side in pixels of the square that images are resized to.
        train_list: Name of the list of training image ids, without `.txt`; "" for the benchmark's
            own, "train_aug" for Pascal and "train2014" for COCO.
        val_list: Name of the list of test image ids; "" for the benchmark's own, "val" for Pascal
            and "val2014" for COCO.
        test: What a model trained on COCO is tested on: "own" for the novel classes of COCO-20i,
            "pascal_disjoint" for the VOC classes that are novel in the fold of COCO-20i,
            "pascal_standard" for those that are novel in the same fold of Pascal-5i, most of which
            the model has seen on COCO.
        test_root: Folder of Pascal VOC for these tests.
        novel: For a folder of your own, the names of the classes kept for testing, separated by
            commas, a name with a comma in double quotes; "" for every fourth class, starting from
            class 1 + fold.
        bad_files: What happens if files of that folder cannot be used: "stop" ends with a message,
            "skip" leaves them out and counts them.
        workers: Processes that read episodes; 0 reads in the main process.
        patience: Seconds without an episode read after which the reading counts as hanging, and the
            command ends.
        decode: "exact" decodes every pixel of a file, as VRP-SAM does; "fast" decodes JPEGs of four
            times `image_size` or more at a fraction of their size.
        annotation: How references are annotated.
        downsample: How an annotation is reduced to the size of the features: "nearest" takes the
            top left pixel of each cell (VRP-SAM; most points vanish), "coverage" weights each cell
            by how much of it is annotated. Use "coverage" with `data.annotation=point`.
        empty_annotation: What happens to a reference without an annotated pixel: "redraw"
            annotates it again, or takes another reference if the object itself vanishes at this
            size; "report" keeps it. Those that remain are counted.
    """

    PREFIX: ClassVar[str] = "data."

    name: Dataset = setting("pascal", Role.BENCHMARK)
    root: str = setting("", Role.PATH, read_with=_FROM_FILES)
    fold: Literal[0, 1, 2, 3] = setting(0, Role.BENCHMARK, read_with=_FOLDED)
    shots: int = setting(1, Role.PROTOCOL, least=1, most=1000)
    image_size: int = setting(512, Role.BENCHMARK, least=32, most=4096)
    train_list: str = setting("", Role.BENCHMARK, read_with=_LISTED)
    val_list: str = setting("", Role.PROTOCOL, read_with=_LISTED)
    test: Literal["own", "pascal_disjoint", "pascal_standard"] = setting(
        "own", Role.PROTOCOL, read_with=("data.name", ("coco",))
    )
    test_root: str = setting(
        "", Role.PATH, read_with=("data.test", ("pascal_disjoint", "pascal_standard"))
    )
    novel: str = setting("", Role.BENCHMARK, read_with=_OWN_FOLDER)
    bad_files: Literal["stop", "skip"] = setting("stop", Role.PROTOCOL, read_with=_OWN_FOLDER)
    workers: int = setting(0, Role.SPEED, least=0, most=256)
    patience: int = setting(50, Role.SPEED, least=1, most=86_400)
    decode: Literal["exact", "fast"] = setting("exact", Role.PROTOCOL, read_with=_LISTED)
    annotation: Annotation = setting("mask", Role.PROTOCOL)
    downsample: Literal["nearest", "coverage"] = setting("nearest", Role.PROTOCOL)
    empty_annotation: Literal["redraw", "report"] = setting("redraw", Role.PROTOCOL)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Group):
    """Optimiser, schedule and length of a training run (paper, section 5.1).

    Attributes:
        epochs: Passes over the fold's training images.
        steps: Training steps; 0 to use `epochs` instead.
        batch_size: Episodes per step, over all devices and hosts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        schedule: "warm_restarts" (cosine from the peak to 0, repeatedly, as in the paper) or
            "cosine" (once, as in VRP-SAM's code).
        restart_epochs: Epochs from one warm restart to the next.
        log_every: Steps between lines of the log.
        checkpoint_every: Steps between checkpoints.
        eval_every: Steps between validations, with another one at the end; 0 for one per epoch;
            -1 for none, so that no checkpoint is chosen by its score on the test list: then
            `prosam evaluate` and `prosam export` need --checkpoint=latest.
    """

    PREFIX: ClassVar[str] = "train."

    epochs: int = setting(
        100, Role.LENGTH, least=1, most=1_000_000, read_with=("train.steps", (0,))
    )
    steps: int = setting(0, Role.LENGTH, least=0, most=1_000_000_000)
    batch_size: int = setting(2, Role.TRAINING, least=1, most=4096)
    learning_rate: float = setting(1e-4, Role.TRAINING, least=0)
    weight_decay: float = setting(1e-6, Role.TRAINING, least=0)
    schedule: Literal["warm_restarts", "cosine"] = setting("warm_restarts", Role.TRAINING)
    restart_epochs: int = setting(
        15, Role.TRAINING, least=1, most=1_000_000, read_with=("train.schedule", ("warm_restarts",))
    )
    log_every: int = setting(10, Role.REPORT, least=1, most=1_000_000_000)
    checkpoint_every: int = setting(500, Role.REPORT, least=1, most=1_000_000_000)
    eval_every: int = setting(0, Role.REPORT, least=-1, most=1_000_000_000)


@dataclasses.dataclass(frozen=True)
class EvalConfig(Group):
    """The evaluation protocol.

    Attributes:
        episodes: Episodes of novel classes in the fixed list.
        seed: Seed of that list, independent of the training seed.
        batch_size: Episodes decoded at once; it does not change the result.
        pictures: How many episodes `examples.png` shows.
        controls: Whether an evaluation also scores the controls and baselines that a result is
            compared with (`prosam_jax.evaluation.controls`).
        samples: K of the strategies that merge the masks of sampled prompts (Table 8,
            `prosam_jax.evaluation.strategies`), which are then scored as well; 0 for none.
        seeds: Number of lists of episodes; the first has the seed `eval.seed`, the next that seed
            plus 1, and so on. Scores are means over the lists.
        join: How several references are joined: "prompts" gives SAM's decoder the prompts of all
            of them (VRP-SAM), "logits" takes the mean of the logits of each.
        resolution: Where pixels are counted: "square" in the square of `data.image_size`
            (VRP-SAM), "original" in each target's own pixels.
        absent: What a class without an episode counts as: "left_out" of the mean, or "zero"
            (VRP-SAM's code).
    """

    PREFIX: ClassVar[str] = "eval."

    episodes: int = setting(1000, Role.PROTOCOL, least=1, most=1_000_000)
    seed: int = setting(321, Role.PROTOCOL, least=0, below=2**32)
    batch_size: int = setting(2, Role.SPEED, least=1, most=1024)
    pictures: int = setting(6, Role.REPORT, least=0, most=200)
    controls: bool = setting(False, Role.REPORT)
    samples: int = setting(0, Role.REPORT, least=0, most=1000)
    seeds: int = setting(1, Role.PROTOCOL, least=1, most=1000)
    join: Literal["prompts", "logits"] = setting("prompts", Role.PROTOCOL)
    resolution: Literal["square", "original"] = setting("square", Role.PROTOCOL)
    absent: Literal["left_out", "zero"] = setting("left_out", Role.PROTOCOL)


@dataclasses.dataclass(frozen=True)
class CacheConfig(Group):
    """The cache of SAM's embeddings of target images on disk (`prosam_jax.feature_cache`).

    Attributes:
        dir: Folder of the cache; "" for no cache.
        dtype: Type of the entries; int8 has one scale per channel.
    """

    PREFIX: ClassVar[str] = "cache."

    dir: str = setting("", Role.PATH)
    dtype: CacheDType = setting("bfloat16", Role.PROTOCOL, read_with=("cache.dir", None))


@dataclasses.dataclass(frozen=True)
class Config(Group):
    """All settings of a run.

    Attributes:
        seed: Seed of initial parameters, episodes, dropout and samples.
        data: The benchmark and its episodes.
        sam: The frozen SAM.
        backbone: The frozen backbone.
        prompt: The prompt encoder.
        distribution: The distribution over prompts.
        train: The training.
        eval: The evaluation.
        cache: The cache of SAM's embeddings.
    """

    seed: int = setting(321, Role.TRAINING, least=0, below=2**32)
    data: DataConfig = DataConfig()
    sam: SAMSettings = SAMSettings()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    distribution: DistributionConfig = DistributionConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self) -> None:
        """Raises UserError unless prompts fit SAM and every setting that is set is read."""
        super().__post_init__()
        width = self.sam.architecture().prompt_embed_dim
        if self.prompt.dim != width:
            raise UserError(
                f"prompt.dim={self.prompt.dim} must be {width}, the width of SAM's prompts"
            )
        if reasons := unread(Config, flat(self)).values():
            raise UserError("; ".join(reasons))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Builds the dataclasses from a ConfigDict or nested mapping.

        Raises:
            UserError: A setting is unknown, has the wrong type, is out of range, or is not read
                with the others; the message names it and what was expected.
        """
        return _build(cls, settings, "")


def _build(cls: type, settings: Mapping[str, Any], prefix: str) -> Any:
    known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
    values = {}
    for name, value in settings.items():
        path = prefix + name
        if name not in known:
            near = nearest(cut(path), [prefix + k for k in known])
            raise UserError(f"unknown setting {cut(path)}{near}")
        if dataclasses.is_dataclass(known[name]):
            if not isinstance(value, Mapping) and not hasattr(value, "items"):
                raise UserError(f"{path}={short(value)} must be a group of settings")
            values[name] = _build(typing.cast(type, known[name]), value, f"{path}.")
        else:
            values[name] = value
    return cls(**values)
