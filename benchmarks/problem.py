"""Sizes, inputs and weights that both sides of a benchmark of ProSAM share.

Only "evaluation" runs networks on images; otherwise their features are random numbers of the right
shapes. All random numbers come from the seed, so every process makes the same ones. PyTorch and
this library are imported only where they are needed, so that the memory of a side's process is
only its own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

HEADS = ("mean", "log_scale")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes; the defaults are those of the paper's training.

    Attributes:
        part: What is computed: "heads" is a training step from the query decoder's output on,
            "all" the same with the whole prompt encoder, "generator" the prompt encoder alone,
            "evaluation" everything from images to masks.
        size: Side of images and masks in pixels; backbone features are an eighth of it.
        embedding: Side of SAM's image embedding.
        samples: K.
        batch: Images.
        prompts: Prompt vectors per image.
        model: The SAM of the evaluation, one of `config.SAM_MODELS`; its backbone is ResNet-50.
        merged: Channels of the backbone's merged features.
        prior: Channels of its high-level features.
        marked: Share of the reference that is annotated.
        device: "cpu" or "gpu".
        devices: Number of devices that share the batch in this library; PyTorch uses one.
        dtype: Type of SAM's activations; "tf32" is float32 with products in TF32 (on a GPU).
        seed: Seed of all random numbers.
    """

    part: str = "heads"
    size: int = 512
    embedding: int = 64
    samples: int = 10
    batch: int = 2
    prompts: int = 50
    model: str = "vit_b"
    merged: int = 1536
    prior: int = 2048
    marked: float = 0.2
    device: str = "cpu"
    devices: int = 1
    dtype: str = "float32"
    seed: int = 0

    def sam(self) -> Any:
        """SAM's architecture; where the image encoder does not run, it is tiny."""
        from prosam_jax.config import SAMConfig

        dtype = "bfloat16" if self.dtype == "bfloat16" else "float32"
        if self.part == "evaluation":
            return dataclasses.replace(SAMConfig.named(self.model), dtype=dtype)
        side = 16 * self.embedding
        return SAMConfig.of(image_size=(side, side), embed_dim=8, depth=1, num_heads=2, dtype=dtype)

    def inputs(self) -> dict[str, np.ndarray]:
        """Inputs of `part` by name, channels last."""
        rng = np.random.default_rng(self.seed)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        b, side, cells = self.batch, self.embedding, self.size // 8
        if self.part == "evaluation":
            images = rng.integers(0, 256, (2, b, self.size, self.size, 3), np.uint8)
            return {"query": images[0], "support": images[1], "mask": self._disk(self.size)}
        found = {}
        if self.part != "generator":
            found["embeddings"] = normal(b, side, side, 256)
            found["target"] = self._disk(self.size)
        if self.part == "heads":
            found["features"] = normal(b, self.prompts, 256)
            return found
        for name in ("query", "support"):
            found[f"{name}_merged"] = np.maximum(normal(b, cells, cells, self.merged), 0)
            found[f"{name}_prior"] = np.maximum(normal(b, cells, cells, self.prior), 0)
        found["mask"] = self._disk(cells).astype(np.float32)
        found["support_prior"] *= found["mask"][..., None]
        return found

    def _disk(self, side: int) -> np.ndarray:
        """Disks that cover the share `marked` of each square, (b, side, side)."""
        y, x = np.mgrid[:side, :side] / side - 0.5
        return np.broadcast_to(y**2 + x**2 < self.marked / np.pi, (self.batch, side, side)).copy()


def to_jax(problem: Problem, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights or gradients of the torch side under this library's names, in its layout.

    Args:
        problem: The problem.
        tensors: All or some of the tensors, by torch's names after the part's, such as "sam.".
    """
    from prosam_jax.convert import engine, vrp_sam_to_flax
    from prosam_jax.convert.engine import Rule, linear
    from prosam_jax.convert.rules import resnet
    from prosam_jax.convert.rules import sam as sam_rules
    from prosam_jax.weights import files

    rules: list[Rule] = [*vrp_sam_to_flax.RULES]
    for head in HEADS:
        rules.append(Rule(rf"{head}\.weight", f"head.{head}.kernel", linear))
        rules.append(Rule(rf"{head}\.bias", f"head.{head}.bias"))
    tables = {"sam": sam_rules.META_RULES, "prompt_encoder": rules, "backbone": resnet.RULES}
    found = {}
    for part, build in parts(problem).items():
        prefix = f"{part}."
        source = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        specs = files.leaves(files.abstract(build))
        if source.keys() <= {f"{head}.{leaf}" for head in HEADS for leaf in ("weight", "bias")}:
            specs = {n: s for n, s in specs.items() if source and n.startswith("head.")}
        for name, array in engine.convert(source, tables[part], (resnet.COUNTERS,), specs).items():
            found[prefix + name] = array
    return found


def parts(problem: Problem) -> dict[str, Callable[[Any], Any]]:
    """Functions that build this library's modules, by attribute of `ProSAM`; without dropout."""
    from prosam_jax import backbone
    from prosam_jax.config import BackboneConfig, DistributionConfig, PromptConfig
    from prosam_jax.prompt.encoder import ReferencePromptEncoder
    from prosam_jax.sam.model import Sam

    cfg = PromptConfig(num_queries=problem.prompts, dropout=0.0)

    def prompt_encoder(rngs: Any) -> ReferencePromptEncoder:
        return ReferencePromptEncoder(cfg, DistributionConfig(), problem.merged, rngs=rngs)

    found: dict[str, Callable[[Any], Any]] = {
        "sam": lambda rngs: Sam(problem.sam(), rngs=rngs),
        "prompt_encoder": prompt_encoder,
    }
    if problem.part == "evaluation":
        found["backbone"] = lambda rngs: backbone.build(BackboneConfig("resnet50"), rngs=rngs)
    return found


def random_weights(problem: Problem) -> dict[str, np.ndarray]:
    """Random weights for this library, if PyTorch takes no part."""
    from prosam_jax.weights import files

    return {
        f"{part}.{name}": np.asarray(array)
        for part, build in parts(problem).items()
        for name, array in files.leaves(files.random(build, problem.seed)).items()
    }
