"""Modules with the golden files' weights, through the rules of the conversion commands."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_recipe import torch_weights

from prosam_jax.backbone.resnet import resnet50
from prosam_jax.backbone.vgg import vgg16_bn
from prosam_jax.config import Config, DistributionConfig, PromptConfig, SAMConfig
from prosam_jax.convert import engine, vrp_sam_to_flax
from prosam_jax.convert.engine import filled
from prosam_jax.convert.rules import resnet as resnet_rules
from prosam_jax.convert.rules import sam as sam_rules
from prosam_jax.convert.rules import vgg as vgg_rules
from prosam_jax.model import ProSAM
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files

VRP = DistributionConfig(name="vrp")


@functools.cache
def vrp_weights(backbone):
    return torch_weights(f"params_vrp_{backbone}")


def resnet():
    return filled(
        lambda rngs: resnet50(rngs=rngs),
        vrp_weights("resnet50"),
        resnet_rules.RULES,
        resnet_rules.IGNORED,
    )


def vgg():
    return filled(
        lambda rngs: vgg16_bn(rngs=rngs),
        vrp_weights("vgg16"),
        vgg_rules.RULES["vgg16_bn"],
        vgg_rules.IGNORED,
    )


def prompt_encoder(backbone="resnet50"):
    channels = {"resnet50": 1536, "vgg16": 768}[backbone]

    def build(rngs):
        return ReferencePromptEncoder(PromptConfig(), VRP, channels, rngs=rngs)

    source = vrp_weights(backbone)
    return filled(build, source, vrp_sam_to_flax.RULES, vrp_sam_to_flax.IGNORED)


def sam(embedding_size):
    """SAM with the golden heads and a small image encoder at random."""
    cfg = SAMConfig(
        image_size=(16 * embedding_size[0], 16 * embedding_size[1]),
        embed_dim=8,
        depth=1,
        num_heads=2,
    )
    module = files.abstract(lambda rngs: Sam(cfg, rngs=rngs))
    specs = files.leaves(module)
    encoder = {n: s for n, s in specs.items() if n.startswith("image_encoder.")}
    heads = {n: s for n, s in specs.items() if n not in encoder}
    source = torch_weights("params_sam_heads")
    arrays = engine.convert(source, sam_rules.META_RULES, (), heads)
    arrays |= {n: np.zeros(s.shape, np.float32) for n, s in encoder.items()}
    return files.fill(module, arrays.__getitem__)


def prosam(embedding_size):
    """The whole model of the golden chain, except for the image encoder."""
    cfg = Config(distribution=VRP)
    model = ProSAM(cfg, sam(embedding_size), resnet(), rngs=nnx.Rngs(0))
    model.prompt_encoder = prompt_encoder()
    return model


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def check_map(golden, name, x, meta, rtol=2e-5):
    """Compares a map (b h w c) with its strided part, channel means and extent, relative to it."""
    x = np.moveaxis(np.asarray(x), -1, 1)
    stride = meta["strides"].get(f"{name}", {"stride": 1})["stride"]
    atol = rtol * golden[f"{name}_stats"][2]
    np.testing.assert_allclose(x[:, ::stride], golden[f"{name}_sub"], rtol=0, atol=atol)
    np.testing.assert_allclose(x.mean((2, 3)), golden[f"{name}_cmean"], rtol=0, atol=atol)
    stats = [x.mean(), x.std(), np.abs(x).max()]
    np.testing.assert_allclose(stats, golden[f"{name}_stats"], rtol=0, atol=atol)
