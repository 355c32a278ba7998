"""Frozen semantic backbones behind one interface."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import resize
from prosam_jax.backbone import dinov2, efficientnet_lite, resnet, vgg
from prosam_jax.config import HUB, BackboneConfig
from prosam_jax.convert import from_hub
from prosam_jax.types import Taps
from prosam_jax.weights import files


@runtime_checkable
class Backbone(Protocol):
    """A network in two parts: for references, the second part takes masked features."""

    merged_channels: int

    def trunk(
        self, images: Float[Array, "b H W 3"], /
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w d"]]:
        """Normalised images -> (features to reduce and merge, input of `tail`)."""
        ...

    def tail(self, x: Float[Array, "b h w d"], /) -> Float[Array, "b i j e"]:
        """The last stage, whose features make the pseudo mask."""
        ...


def build(cfg: BackboneConfig, *, rngs: nnx.Rngs) -> Backbone:
    """The backbone called `cfg.name`, with random weights and activations of type `cfg.dtype`."""
    builders: dict[str, Callable[..., Backbone]] = {
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
        "efficientnet_lite0": efficientnet_lite.lite0,
        "shapes": resnet.shapes,
        "tiny": resnet.tiny,
    }
    network = builders[cfg.name](rngs=rngs)
    for _, module in nnx.iter_modules(cast(nnx.Module, network)):
        if isinstance(module, nnx.Conv | nnx.Linear | nnx.LayerNorm):
            module.dtype = jnp.dtype(cfg.dtype)
    return network


def load(cfg: BackboneConfig, seed: int = 0) -> Backbone:
    """The backbone that the settings name, with the weights of its weight file.

    "random" weights come from the seed.

    Raises:
        UserError: The file is missing, damaged or for another backbone; the message names the
            command that makes it. Or it cannot be fetched from the hub, as `fetch`.
    """
    if cfg.weights == HUB:
        fetch(cfg.name)
    return files.frozen(
        lambda rngs: cast(Any, build(cfg, rngs=rngs)),
        cfg.weight_file(),
        seed,
        kind="backbone",
        architecture=cfg.name,
    )


def fetch(name: str, *, check: bool = False, source: pathlib.Path | None = None) -> from_hub.Kept:
    """Sees to it that a published backbone's weight file is in the cache; see `from_hub.fetch`."""
    return from_hub.fetch(
        lambda rngs: cast(Any, build(BackboneConfig.of(name=name), rngs=rngs)),
        kind="backbone",
        architecture=name,
        check=check,
        source=source,
    )


def target_taps(backbone: Backbone, images: Float[Array, "b H W 3"]) -> Taps:
    """Features of target images, normalised with `resize.normalize`; float32."""
    merged, x = backbone.trunk(images)
    return _exact(Taps(merged, backbone.tail(x)))


def reference_taps(
    backbone: Backbone, images: Float[Array, "b H W 3"], mask: Float[Array, "b h w"]
) -> Taps:
    """Features of reference images; the high-level ones cover the annotated region only.

    Args:
        backbone: The network.
        images: Normalised reference images.
        mask: The annotation at the size of the merged features, weights in [0, 1].

    Returns:
        Taps whose `prior` is computed from masked features and masked again, as in VRP-SAM;
        float32.
    """
    merged, x = backbone.trunk(images)
    prior = backbone.tail(x * mask[..., None].astype(x.dtype))
    _, h, w, _ = prior.shape
    merged, prior = _exact(Taps(merged, prior))
    return Taps(merged, prior * resize.bilinear(mask[..., None], (h, w), align_corners=True))


def _exact(taps: Taps) -> Taps:
    """The learned part works in float32, whatever the backbone does."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), taps)
