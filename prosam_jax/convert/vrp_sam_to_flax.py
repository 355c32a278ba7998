"""Converts a checkpoint of VRP-SAM, or of ProSAM on top of it, to a prompt encoder's file."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from flax import nnx

import prosam_jax
from prosam_jax import backbone
from prosam_jax.config import (
    BACKBONES,
    DISTRIBUTIONS,
    SAM_MODELS,
    BackboneConfig,
    Config,
    DistributionConfig,
    PromptConfig,
    SAMSettings,
    check_choice,
)
from prosam_jax.convert import recognise, torch_files
from prosam_jax.convert.engine import Ignored, Rule, linear, pointwise
from prosam_jax.convert.weight_file import write
from prosam_jax.errors import UserError
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights.prompt_encoder import Trained

# VRP-SAM reads the reference first, with the layers called *_0, then the target with the others.
BLOCKS = {
    "transformer_cross_attention_layers_0.0.multihead_attn": "support_cross",
    "transformer_self_attention_layers_0.0.self_attn": "support_self",
    "transformer_cross_attention_layers.0.multihead_attn": "query_cross",
    "transformer_self_attention_layers.0.self_attn": "query_self",
}

# The linear layers of `prompt.posterior.PosteriorHead`, and the flags that name their modules.
FLAGS = {
    "mean": "--mean-head",
    "log_scale": "--scale-head",
    "linear1": "--linear1",
    "linear2": "--linear2",
}
HEADS: dict[str, tuple[str, ...]] = {
    "vrp": (),
    "vrp_2linear": ("linear1", "linear2"),
    "gaussian": ("mean", "log_scale"),
    "student_t": ("mean", "log_scale"),
    "t3vae": ("mean", "log_scale"),
}
QUERIES = "transformer_decoder.supp_q_feat.weight"
REDUCE = "downsample_query.0.weight"


def _block(source: str, target: str) -> list[Rule]:
    attention = re.escape(f"transformer_decoder.{source}")
    norm = re.escape(f"transformer_decoder.{source.rpartition('.')[0]}.norm")
    q, k, v, out = (rf"decoder.{target}.{x}_proj" for x in ("q", "k", "v", "out"))
    return [
        Rule(
            rf"{attention}\.in_proj_weight", (f"{q}.kernel", f"{k}.kernel", f"{v}.kernel"), linear
        ),
        Rule(rf"{attention}\.in_proj_bias", (f"{q}.bias", f"{k}.bias", f"{v}.bias")),
        Rule(rf"{attention}\.out_proj\.weight", f"{out}.kernel", linear),
        Rule(rf"{attention}\.out_proj\.bias", f"{out}.bias"),
        Rule(rf"{norm}\.weight", f"decoder.{target}_norm.scale"),
        Rule(rf"{norm}\.bias", f"decoder.{target}_norm.bias"),
    ]


RULES = (
    Rule(r"downsample_query\.0\.weight", "features.reduce.kernel", pointwise),
    Rule(r"merge_1\.0\.weight", "features.merge.kernel", pointwise),
    Rule(r"transformer_decoder\.supp_q_feat\.weight", "decoder.queries"),
    *(rule for source, target in BLOCKS.items() for rule in _block(source, target)),
)
IGNORED = (
    Ignored(r"layer[0-4]\..*", "the frozen backbone, for `prosam weights convert backbone`"),
)


def convert(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    *,
    distribution: str = "vrp",
    heads: Mapping[str, str] | None = None,
    backbone_name: str = "",
    sam: str = "vit_h",
) -> None:
    """Writes `out`, the file of a trained prompt encoder.

    Args:
        checkpoint: torch's file.
        out: The `.safetensors` file to write.
        distribution: What the heads predict, one of `DISTRIBUTIONS`.
        heads: Names of the checkpoint's modules, by the names in `HEADS`; the scale head must
            predict log sigma.
        backbone_name: One of `BACKBONES`; "" for the one in the checkpoint.
        sam: The SAM it was trained with, which checkpoints do not record.

    Raises:
        UserError: The checkpoint cannot be read, or does not hold such a prompt encoder.
    """
    check_choice("--distribution", distribution, DISTRIBUTIONS)
    check_choice("--sam", sam, SAM_MODELS)
    source = torch_files.read(checkpoint)
    recognise.require(checkpoint, source.tensors, "prompt_encoder", "")
    name = _backbone(checkpoint, source.tensors, backbone_name)
    channels = _channels(checkpoint, source.tensors, name)
    if source.tensors[QUERIES].ndim != 2:
        raise UserError(
            f"{checkpoint} holds {QUERIES} of shape {source.tensors[QUERIES].shape}: a table of "
            "prompts has two axes"
        )
    queries, dim = source.tensors[QUERIES].shape
    try:
        cfg = Config(
            sam=SAMSettings.of(model=sam),
            backbone=BackboneConfig.of(name=name),
            prompt=PromptConfig(num_queries=queries, dim=dim),
            distribution=DistributionConfig.of(name=distribution),
        )
    except UserError as error:
        raise UserError(f"{checkpoint} has sizes that do not fit: {error}") from error
    rules = _head_rules(checkpoint, source.tensors, distribution, heads or {})
    unknown = {"arrays_sha256": None}
    trained = Trained(
        config=cfg,
        merged_channels=channels,
        frozen={
            "sam": {"architecture": sam, **unknown},
            "backbone": {"architecture": name, **unknown},
        },
        version=prosam_jax.__version__,
    )
    write(
        source,
        out,
        kind="prompt_encoder",
        architecture=distribution,
        build=lambda rngs: ReferencePromptEncoder(
            cfg.prompt, cfg.distribution, channels, rngs=rngs
        ),
        rules=(*RULES, *rules),
        ignored=IGNORED,
        facts=dataclasses.asdict(trained),
    )


def _backbone(path: pathlib.Path, tensors: Mapping[str, np.ndarray], name: str) -> str:
    """The name of the backbone in the checkpoint, or `name` if it holds none."""
    if name:
        check_choice("--backbone", name, BACKBONES)
    held = [x.architecture for x in recognise.recognise(tensors) if x.kind == "backbone"]
    if not held and not name:
        raise UserError(
            f"{path} holds no known backbone: say with --backbone which one it was trained with, "
            f"{', '.join(BACKBONES)}"
        )
    if held and name not in ("", held[0]):
        raise UserError(
            f"{path} holds the backbone {held[0]}, but --backbone says {name}: leave --backbone out"
        )
    return held[0] if held else name


def _channels(path: pathlib.Path, tensors: Mapping[str, np.ndarray], name: str) -> int:
    """Merged channels of the backbone; the checkpoint must reduce as many."""
    channels = _merged_channels(name)
    if REDUCE in tensors and tensors[REDUCE].shape[1:2] != (channels,):
        raise UserError(
            f"{path} has {REDUCE} of shape {tensors[REDUCE].shape}, but {name} has {channels} "
            "merged channels: pass the right --backbone"
        )
    return channels


@functools.cache
def _merged_channels(name: str) -> int:
    cfg = BackboneConfig.of(name=name)
    return nnx.eval_shape(lambda: backbone.build(cfg, rngs=nnx.Rngs(0))).merged_channels


def _head_rules(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    distribution: str,
    heads: Mapping[str, str],
) -> list[Rule]:
    """Rules for the linear layers on top of VRP-SAM, which the caller has named."""
    wanted = HEADS[distribution]
    flags = ", ".join(FLAGS[head] for head in wanted) or "none of the heads' flags"
    found = _linear_layers(tensors)
    if surplus := [name for name in found if name not in heads.values()]:
        raise UserError(
            f"{path} holds linear layers that VRP-SAM does not have: {', '.join(surplus)}; name "
            "them with --distribution student_t, gaussian or t3vae and --mean-head, --scale-head, "
            "or with --distribution vrp_2linear and --linear1, --linear2"
        )
    if set(heads) != set(wanted):
        raise UserError(f"--distribution {distribution} takes {flags}")
    for head, module in heads.items():
        check_choice(FLAGS[head], module, found)
    return [
        rule
        for head, module in heads.items()
        for rule in (
            Rule(rf"{re.escape(module)}\.weight", f"head.{head}.kernel", linear),
            Rule(rf"{re.escape(module)}\.bias", f"head.{head}.bias"),
        )
    ]


def _linear_layers(tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Modules with the weight and bias of a square linear layer that no other rule takes."""
    taken = [entry.pattern for entry in (*RULES, *IGNORED)]
    width = tensors[QUERIES].shape[1]
    modules = [
        name.removesuffix(".weight")
        for name, x in tensors.items()
        if name.endswith(".weight")
        and x.shape == (width, width)
        and not any(re.fullmatch(pattern, name) for pattern in taken)
    ]
    return tuple(module for module in modules if f"{module}.bias" in tensors)
