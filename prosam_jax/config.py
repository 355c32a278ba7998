"""Every setting as a frozen dataclass, and the borders from a ConfigDict and a file to them."""

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Self

from prosam_jax.atomic import replacing
from prosam_jax.errors import UserError

SAM_MODELS = ("vit_b", "vit_l", "vit_h", "shapes", "tiny")
BACKBONES = (
    "resnet50",
    "resnet101",
    "resnet50_torchvision",
    "resnet101_torchvision",
    "vgg16",
    "vgg16_bn",
    "dinov2_vits14",
    "dinov2_vitb14",
    "efficientnet_lite0",
    "shapes",
    "tiny",
)
DISTRIBUTIONS = ("vrp", "vrp_2linear", "gaussian", "student_t", "t3vae")
DATASETS = ("pascal", "coco", "shapes", "folder")
TESTS = ("own", "pascal_disjoint", "pascal_standard")
ANNOTATIONS = ("mask", "box", "scribble", "point")
DOWNSAMPLES = ("nearest", "coverage")
BAD_FILES = ("stop", "skip")
CUELESS = ("redraw", "report")
DECODES = ("exact", "fast")
SCHEDULES = ("warm_restarts", "cosine")
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("plain", "cudnn")
CACHE_DTYPES = ("float32", "bfloat16", "int8")
RANDOM = "random"
PACKAGED = "packaged"


def check_choice(setting: str, value: object, known: tuple[str, ...]) -> None:
    """Raises ValueError, naming the nearest known values, unless `value` is one of `known`."""
    if value not in known:
        raise UserError(f"{setting}={value!r} is not known{_nearest(str(value), known)}")


def check_at_least(setting: str, value: float, least: float) -> None:
    """Raises ValueError unless `value >= least`."""
    if not value >= least:
        raise UserError(f"{setting}={value!r} must be at least {least}")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"; nearest: {', '.join(near)}"
    return f"; known: {', '.join(known)}" if known else ""


def packaged(kind: str, name: str) -> str:
    """The weight file of a network that comes with the package."""
    return str(pathlib.Path(__file__).parent / "pretrained" / f"{kind}_{name}.safetensors")


def _check_packaged(setting: str, value: str, owner: str, name: str) -> None:
    if value == PACKAGED and name != "shapes":
        raise UserError(
            f"{setting}={PACKAGED} needs {owner}=shapes, not {name}: no other weights come with "
            "the package"
        )


@dataclasses.dataclass(frozen=True)
class SAMConfig:
    """Architecture of SAM (Kirillov et al. 2023, arXiv 2304.02643), names as in `segment_anything`.

    Attributes:
        image_size: (height, width) in pixels of the image the encoder takes.
        patch_size: Side of a patch in pixels, the stride of the image embedding.
        embed_dim: Width of the ViT.
        depth: Number of ViT blocks.
        num_heads: Attention heads of a ViT block.
        mlp_ratio: Hidden over outer width of a ViT block's MLP.
        window_size: Side in patches of the attention windows, 0 for none.
        global_attn_indexes: Blocks that attend globally instead of in windows.
        use_abs_pos: Whether absolute positions are added; without them any image size is taken.
        use_rel_pos: Whether decomposed relative positions are added to the attention scores.
        prompt_embed_dim: Channels of the image embedding and of every prompt.
        mask_in_chans: Channels inside the mask prompt's downscaling.
        decoder_depth: Blocks of the two-way transformer.
        decoder_num_heads: Its attention heads.
        decoder_mlp_dim: Hidden width of its MLPs.
        num_multimask_outputs: Masks of the multimask output (the single mask comes on top).
        iou_head_depth: Layers of the MLP that predicts the masks' IoU.
        iou_head_hidden_dim: Hidden width of that MLP.
        dtype: Type of the activations; parameters stay float32.
        attention: How the ViT attends, see `SAMSettings`.
    """

    image_size: tuple[int, int] = (1024, 1024)
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    prompt_embed_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    dtype: str = "float32"
    attention: str = "plain"

    def __post_init__(self) -> None:
        """Checks what the modules rely on."""
        check_choice("sam.dtype", self.dtype, DTYPES)
        check_choice("sam.attention", self.attention, ATTENTIONS)
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError(f"sam.attention='cudnn' needs sam.dtype='bfloat16', not {self.dtype!r}")
        if min(self.image_size) < self.patch_size:
            raise UserError(
                f"image_size={self.image_size} must be at least patch_size={self.patch_size}"
            )

    @property
    def embedding_size(self) -> tuple[int, int]:
        """(height, width) of the image embedding in patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @classmethod
    def vit_b(cls) -> Self:
        """ViT-B, as in `sam_vit_b_01ec64.pth`."""
        return cls()

    @classmethod
    def vit_l(cls) -> Self:
        """ViT-L, as in `sam_vit_l_0b3195.pth`."""
        return cls(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))

    @classmethod
    def vit_h(cls) -> Self:
        """ViT-H, as in `sam_vit_h_4b8939.pth`, the one of the paper."""
        return cls(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31))

    @classmethod
    def shapes(cls) -> Self:
        """The small one for pictures as in Shapes-5i, whose weights come with the package."""
        return cls(
            image_size=(128, 128),
            patch_size=8,
            embed_dim=96,
            depth=5,
            num_heads=3,
            mlp_ratio=3.0,
            window_size=8,
            global_attn_indexes=(2, 4),
            prompt_embed_dim=96,
            mask_in_chans=8,
            decoder_num_heads=4,
            decoder_mlp_dim=160,
            iou_head_hidden_dim=64,
        )

    @classmethod
    def tiny(cls) -> Self:
        """A few layers for tests and trials; nobody publishes weights of this size."""
        return cls(
            image_size=(256, 256),
            embed_dim=48,
            depth=3,
            num_heads=2,
            window_size=5,
            global_attn_indexes=(1,),
            decoder_mlp_dim=128,
        )

    @classmethod
    def named(cls, name: str) -> Self:
        """The size called `name`; ValueError with the nearest names if there is none."""
        check_choice("sam.model", name, SAM_MODELS)
        return getattr(cls, name)()


@dataclasses.dataclass(frozen=True)
class SAMSettings:
    """Which SAM is used; frozen in training.

    Attributes:
        model: One of `SAM_MODELS`.
        weights: A `.safetensors` file of `convert/sam_to_flax.py` (`{model}` stands for the
            model's name), "packaged" for the file that comes with the package (model "shapes"
            only), or "random".
        image_size: Side in pixels of the square that target images are brought to; 0 for the
            model's own. Published weights know 1024 only.
        dtype: Type of SAM's activations.
        attention: How its ViT attends: "plain" on any device, or "cudnn" through cuDNN's flash
            attention, which needs "bfloat16" and a GPU of Hopper's generation or a later one.
    """

    model: str = "vit_h"
    weights: str = "weights/sam_{model}.safetensors"
    image_size: int = 0
    dtype: str = "float32"
    attention: str = "plain"

    def __post_init__(self) -> None:
        """Checks names and sizes."""
        check_choice("sam.model", self.model, SAM_MODELS)
        check_choice("sam.dtype", self.dtype, DTYPES)
        if self.image_size < 0 or self.image_size % 16:
            raise UserError(f"sam.image_size={self.image_size} must be 0 or a multiple of 16")
        _check_packaged("sam.weights", self.weights, "sam.model", self.model)

    def weight_file(self) -> str:
        """The file that `weights` stands for."""
        if self.weights == PACKAGED:
            return packaged("sam", self.model)
        return self.weights.replace("{model}", self.model)

    def architecture(self) -> SAMConfig:
        """The architecture that these settings name."""
        cfg = SAMConfig.named(self.model)
        size = (self.image_size, self.image_size) if self.image_size else cfg.image_size
        return dataclasses.replace(cfg, image_size=size, dtype=self.dtype, attention=self.attention)


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which semantic backbone feeds the prompt encoder; frozen in training.

    Attributes:
        name: One of `BACKBONES`. "resnet50" and "resnet101" have the deep stem of semseg's and
            PFENet's checkpoints, the paper's; "shapes" is small and comes with the package;
            "tiny" is for tests and trials.
        weights: A `.safetensors` file of `convert/backbone_to_flax.py` (`{name}` stands for
            the backbone's name), "packaged" for the file that comes with the package (name
            "shapes" only), or "random".
    """

    name: str = "resnet50"
    weights: str = "weights/{name}.safetensors"

    def __post_init__(self) -> None:
        """Checks names."""
        check_choice("backbone.name", self.name, BACKBONES)
        _check_packaged("backbone.weights", self.weights, "backbone.name", self.name)

    def weight_file(self) -> str:
        """The file that `weights` stands for."""
        if self.weights == PACKAGED:
            return packaged("backbone", self.name)
        return self.weights.replace("{name}", self.name)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The learned prompt encoder (paper, sections 3.2 and 8; VRP-SAM, arXiv 2402.17726).

    Attributes:
        dim: Width of features, queries and prompts; SAM's prompts are 256 wide.
        num_queries: Prompts per shot.
        num_heads: Attention heads of the query decoder.
        dropout: Share of reduced feature channels dropped in training.
        normalize_prior: Whether the pseudo mask is min-max normalised per image; VRP-SAM's
            code does not, the paper's text admits it.
        weights: A `.safetensors` file of a trained prompt encoder (`python -m
            prosam_jax.prompt_file export`) that training begins from; "" begins from the seed.
    """

    dim: int = 256
    num_queries: int = 50
    num_heads: int = 4
    dropout: float = 0.5
    normalize_prior: bool = False
    weights: str = ""

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_at_least("prompt.num_queries", self.num_queries, 1)
        check_at_least("prompt.num_heads", self.num_heads, 1)
        if self.dim % 4 or self.dim % self.num_heads:
            raise UserError(
                f"prompt.dim={self.dim} must be a multiple of 4 and of "
                f"prompt.num_heads={self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"prompt.dropout={self.dropout} must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class DistributionConfig:
    """The distribution over prompts (Eq. 5-10).

    Attributes:
        name: "vrp" (deterministic, VRP-SAM), "vrp_2linear" (VRP-SAM with two more linear layers,
            Table 7), "gaussian" (Table 4), "student_t" (Eq. 5-7) or "t3vae" (arXiv 2312.01133).
        nu: Degrees of freedom of the t-distributions.
        samples: K of Eq. 10, Monte Carlo samples per training step.
        sample_group: Samples that are decoded at once; 0 for two on a CPU, where more are slower,
            and for all of them elsewhere. Memory grows with it, the result does not change.
        init_scale: Scale sigma that the log-scale head is centred on at the start.
        min_scale: Floor that is added to sigma; 0 is the paper's.
        entropy_weight: Weight of the mean log-scale that is subtracted from the loss; 0 is the
            paper's.
    """

    name: str = "student_t"
    nu: float = 5.0
    samples: int = 10
    sample_group: int = 0
    init_scale: float = 1.0
    min_scale: float = 0.0
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        check_choice("distribution.name", self.name, DISTRIBUTIONS)
        check_at_least("distribution.samples", self.samples, 1)
        check_at_least("distribution.sample_group", self.sample_group, 0)
        check_at_least("distribution.min_scale", self.min_scale, 0)
        check_at_least("distribution.entropy_weight", self.entropy_weight, 0)
        if not self.nu > 0:
            raise UserError(f"distribution.nu={self.nu} must be above 0")
        if not self.init_scale > 0:
            raise UserError(f"distribution.init_scale={self.init_scale} must be above 0")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The benchmark and how its files are read.

    Attributes:
        name: One of `DATASETS`: Pascal-5i, COCO-20i, the generated Shapes-5i, or a folder of
            one's own.
        root: Folder of the dataset, for Pascal the one that holds `JPEGImages`, for COCO the one
            that holds `train2014`, or a TFDS data directory that `data.tfds_build` filled; shapes
            have none.
        fold: Fold 0-3, whose classes are kept for testing.
        shots: Reference images per episode.
        image_size: Side in pixels of the square that images are brought to.
        train_list: Name of the id list of the training pool, without `.txt`; "" for the
            benchmark's own, "train_aug" for Pascal and "train2014" for COCO.
        val_list: Name of the id list of the testing pool; "" for "val" or "val2014".
        test: One of `TESTS`: what a model that is trained on COCO is tested on. "pascal_disjoint"
            are VOC's classes that are novel in the fold of COCO-20i, "pascal_standard" those that
            are novel in the same fold of Pascal-5i, of which COCO has shown most.
        test_root: Folder of Pascal VOC for these tests.
        novel: For a folder of one's own the names of the classes kept for testing, with commas
            between; "" for every fourth, from class 1 + fold.
        bad_files: What becomes of files in it that cannot be used: "stop" names them, "skip"
            leaves them out and counts them.
        workers: Processes that read episodes; 0 reads in the main one.
        decode: "exact" decodes every pixel of a file, as VRP-SAM does; "fast" decodes JPEGs of four
            times `image_size` or more at a part of their size (`transforms.decode`).
        annotation: How references are marked: "mask", "box", "scribble" or "point".
        downsample: How an annotation is brought to the size of the features: "nearest" takes the
            top left pixel of each cell (VRP-SAM; most points vanish), "coverage" weighs each cell
            by how much of it is marked (`resize.coverage`).
        cueless: What becomes of a reference on which no pixel is marked: "redraw" marks it anew,
            or takes another if the object itself is lost at this size; "report" keeps it. Those
            that stay are counted.
    """

    name: str = "pascal"
    root: str = ""
    fold: int = 0
    shots: int = 1
    image_size: int = 512
    train_list: str = ""
    val_list: str = ""
    test: str = "own"
    test_root: str = ""
    novel: str = ""
    bad_files: str = "stop"
    workers: int = 0
    decode: str = "exact"
    annotation: str = "mask"
    downsample: str = "nearest"
    cueless: str = "redraw"

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        check_choice("data.name", self.name, DATASETS)
        check_choice("data.decode", self.decode, DECODES)
        check_choice("data.annotation", self.annotation, ANNOTATIONS)
        check_choice("data.downsample", self.downsample, DOWNSAMPLES)
        check_choice("data.cueless", self.cueless, CUELESS)
        check_choice("data.bad_files", self.bad_files, BAD_FILES)
        if self.fold not in range(4):
            raise UserError(f"data.fold={self.fold} must be 0, 1, 2 or 3")
        check_choice("data.test", self.test, TESTS)
        if self.test != "own" and self.name != "coco":
            raise UserError(f"data.test={self.test!r} needs data.name='coco', not {self.name!r}")
        check_at_least("data.shots", self.shots, 1)
        check_at_least("data.image_size", self.image_size, 32)
        check_at_least("data.workers", self.workers, 0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule and length of a training run (paper, section 5.1).

    Attributes:
        epochs: Passes over the fold's training images; unread when `steps` is set.
        steps: Training steps, 0 to count in epochs.
        batch_size: Episodes per step, over all devices and hosts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Its weight decay.
        schedule: "warm_restarts" (cosine from the peak to 0, again and again) or "cosine" (once).
        restart_epochs: Epochs from one warm restart to the next.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
        eval_every: Steps between two validations, 0 for once an epoch, and at the end; -1 for
            none at all, which chooses no checkpoint by its score on the test list.
    """

    epochs: int = 100
    steps: int = 0
    batch_size: int = 2
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    schedule: str = "warm_restarts"
    restart_epochs: int = 15
    log_every: int = 10
    checkpoint_every: int = 500
    eval_every: int = 0

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        check_choice("train.schedule", self.schedule, SCHEDULES)
        check_at_least("train.steps", self.steps, 0)
        check_at_least("train.eval_every", self.eval_every, -1)
        for name in ("epochs", "batch_size", "restart_epochs", "log_every", "checkpoint_every"):
            check_at_least(f"train.{name}", getattr(self, name), 1)
        check_at_least("train.learning_rate", self.learning_rate, 0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation protocol.

    Attributes:
        episodes: Episodes of novel classes in the fixed list.
        seed: Seed of that list; the same for every training seed.
        batch_size: Episodes decoded at once; it does not change the result.
        pictures: Episodes drawn in the picture.
        controls: Whether `evaluate.py` also scores what the result is to be measured against
            (`training.controls`).
    """

    episodes: int = 1000
    seed: int = 321
    batch_size: int = 2
    pictures: int = 6
    controls: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        check_at_least("eval.episodes", self.episodes, 1)
        check_at_least("eval.seed", self.seed, 0)
        check_at_least("eval.batch_size", self.batch_size, 1)
        check_at_least("eval.pictures", self.pictures, 0)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """SAM's embeddings of target images on disk (`prosam_jax.feature_cache`).

    Attributes:
        dir: Folder of the cache; "" for none.
        dtype: Type of the entries, one of `CACHE_DTYPES`; int8 has a scale per channel.
    """

    dir: str = ""
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Checks the type."""
        check_choice("cache.dtype", self.dtype, CACHE_DTYPES)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. `seed` fixes initial weights, episodes, dropout and samples."""

    seed: int = 321
    data: DataConfig = DataConfig()
    sam: SAMSettings = SAMSettings()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    distribution: DistributionConfig = DistributionConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self) -> None:
        """Checks the seed, and that prompts fit SAM."""
        check_at_least("seed", self.seed, 0)
        width = self.sam.architecture().prompt_embed_dim
        if self.prompt.dim != width:
            raise UserError(f"prompt.dim={self.prompt.dim} must be {width}, as wide as SAM's")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Builds the dataclasses from a ConfigDict or nested mapping.

        Raises:
            ValueError: A setting is unknown, has another type, or a value out of its range; the
                message names it and the nearest known names.
        """
        return _build(cls, settings, "")


def _build(cls: type, settings: Mapping[str, Any], prefix: str) -> Any:
    known = typing.get_type_hints(cls)
    values = {}
    for name, value in settings.items():
        path = prefix + name
        if name not in known:
            raise UserError(f"unknown setting {path}{_nearest(path, [prefix + k for k in known])}")
        if dataclasses.is_dataclass(known[name]):
            if not isinstance(value, Mapping) and not hasattr(value, "items"):
                raise UserError(f"{path}={value!r} must be a group of settings")
            values[name] = _build(typing.cast(type, known[name]), value, f"{path}.")
        else:
            values[name] = _checked(path, value, known[name])
    return cls(**values)


def _checked(path: str, value: Any, kind: type | types.UnionType) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        name = getattr(kind, "__name__", str(kind))
        raise UserError(f"{path}={value!r} must be of type {name}, not {type(value).__name__}")
    return value


def check_setting(path: str) -> None:
    """Raises ValueError, naming the nearest known names, unless `path` is a setting's name."""
    cls, prefix = Config, ""
    for name in path.split("."):
        known = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if name not in known:
            raise UserError(
                f"unknown setting {path}{_nearest(prefix + name, [prefix + k for k in known])}"
            )
        cls, prefix = known[name], f"{prefix}{name}."


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested plain dicts, the inverse of `Config.from_dict`."""
    return dataclasses.asdict(config)


def write_config(cfg: Config, path: pathlib.Path) -> None:
    """Keeps a run's settings as JSON."""
    with replacing(path) as part:
        part.write_text(json.dumps(to_dict(cfg), indent=2) + "\n")


def read_config(path: pathlib.Path) -> Config:
    """The settings of a run, from `config.json` of its working directory.

    Raises:
        ValueError: There is no such file, or its settings are not valid.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: --workdir must name the workdir of a training run")
    try:
        return Config.from_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); restore it or begin a new run") from error


def replaced(cfg: Config, overrides: Mapping[str, Any]) -> Config:
    """The settings with new values by dotted name, such as {"eval.episodes": 10}.

    Raises:
        ValueError: A new value is not valid.
    """
    settings = to_dict(cfg)
    for name, value in overrides.items():
        group = settings
        *groups, leaf = name.split(".")
        for part in groups:
            group = group[part]
        group[leaf] = value
    return Config.from_dict(settings)


def changed(old: Config, new: Config, free: tuple[str, ...]) -> list[str]:
    """Settings in which two configurations of one run differ and must not.

    Args:
        old: Settings of the run.
        new: Settings it is to go on or to be scored with.
        free: Names of settings that may differ. Weight files may always have moved, but not
            become random or cease to be, and a run does not come to begin from a file.

    Returns:
        Such settings as "name: old -> new".
    """
    before, after = (_flat(to_dict(cfg)) for cfg in (old, new))
    free += tuple(
        name
        for name in ("sam.weights", "backbone.weights", "prompt.weights")
        if not {RANDOM, ""} & {before[name], after[name]}
    )
    return [
        f"{k}: {before[k]} -> {after[k]}" for k in before if before[k] != after[k] and k not in free
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(typing.cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
