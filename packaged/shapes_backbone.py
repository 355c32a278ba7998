"""Trains the packaged small backbone to classify the outline under each cell of its feature map.

    python packaged/shapes_backbone.py

The last stage sees half of the pictures a second time, with all but one object masked out of its
input, as ProSAM masks the reference. Features are classified by direction alone, because ProSAM
compares them by the cosine. A stopped run goes on from its checkpoint. It takes about 20 minutes on
one CPU core.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from packaged import fitting
from packaged.training_pictures import CLASSES, traits
from prosam_jax import backbone, equations, equations_fast, layers, resize
from prosam_jax.backbone.resnet import ConvBN, ResNet
from prosam_jax.config import BackboneConfig, DataConfig
from prosam_jax.data.datasets.shapes import shapes_episodes
from prosam_jax.data.loader import make_loader

OUT = pathlib.Path(__file__).resolve().parents[1]
OUT /= "prosam_jax/pretrained/backbone_shapes.safetensors"
DEFAULT = fitting.Settings(
    out=OUT,
    workdir=pathlib.Path("runs/shapes_backbone"),
    steps=2500,
    batch_size=8,
    count=6000,
    learning_rate=2e-3,
)
SHARPNESS = 16.0  # the cosine's factor in the softmax
MOMENTUM = 0.98  # of the running statistics
CELL = 8  # side of a cell of the feature map in pixels


class BatchNorm(layers.FrozenBatchNorm):
    """Batch norm in training, which uses the batch's statistics and updates the running ones."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises with the batch's mean and variance, and updates the running ones."""
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        for running, found in ((self.running_mean, mean), (self.running_var, var)):
            running[...] = MOMENTUM * running[...] + (1 - MOMENTUM) * jax.lax.stop_gradient(found)
        gain = self.weight[...] * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * gain
        return x * gain.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


class Classifier(nnx.Module):
    """The backbone with trainable batch norms, and a direction for the background and each class.

    Features are compared with the directions by the cosine. A class's direction is the sum of a
    learned map of its surface's traits and a vector of its own, so that similar classes share what
    they learn.
    """

    def __init__(self, network: ResNet, *, rngs: nnx.Rngs):
        for _, module in list(nnx.iter_graph(network)):
            if isinstance(module, ConvBN):
                module.bn = BatchNorm(len(module.bn.bias[...]))
        self.network = network
        channels = network.layer4[-1].conv3.bn.bias[...].size
        known = np.pad(traits(), ((1, 0), (0, 0)))  # the background has no traits
        self.traits = nnx.Variable(jnp.asarray(known))
        init = nnx.initializers.normal(1.0)
        self.mapping = nnx.Param(init(rngs.params(), (known.shape[1], channels)) / 3)
        self.own = nnx.Param(init(rngs.params(), (CLASSES + 1, channels)) / 3)

    def __call__(self, features: Float[Array, "*b c"]) -> Float[Array, "*b k"]:
        """Log-probabilities of the background and of every class."""
        directions = self.traits[...] @ self.mapping[...] + self.own[...]
        cosine = jnp.einsum("...c,kc->...k", unit(features), unit(directions))
        return jax.nn.log_softmax(SHARPNESS * cosine)


def unit(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Vectors scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def loss(
    model: Classifier,
    batch: fitting.Batch,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropies of cells, of objects' average features, and of cells of an object alone."""
    images, objects, classes, _ = batch
    b, n, _ = objects.shape
    side = n // CELL
    mean, std = (jnp.array(x).reshape(1, 1, 1, 3) for x in (resize.MEAN, resize.STD))
    _, layer3 = model.network.trunk((images / 255 - mean) / std)
    shares = jax.nn.one_hot(objects, classes.shape[1])
    shares = shares.reshape(b, side, CELL, side, CELL, -1).mean((2, 4))
    half = b // 2  # pictures that are seen a second time, with one object alone
    lots = jax.random.uniform(key, (half, classes.shape[1])) * (classes[:half] > 0)
    one = lots.argmax(1)
    mask = (objects[:half] == one[:, None, None])[..., None].astype(jnp.float32)
    mask = resize.nearest(mask, (side, side))
    features = model.network.tail(jnp.concatenate([layer3, layer3[:half] * mask]))
    log_p = model(features)
    names = jnp.broadcast_to(classes[:, None, None], (b, side, side, classes.shape[1]))
    whole = -(shares * jnp.take_along_axis(log_p[:b], names, axis=3)).sum(3)
    chosen = jnp.take_along_axis(classes[:half], one[:, None], axis=1).reshape(half, 1, 1, 1)
    chosen = jnp.broadcast_to(chosen, (half, side, side, 1))
    alone = -jnp.take_along_axis(log_p[b:], chosen, axis=3)
    pooled = model(jnp.einsum("bhwo,bhwc->boc", shares, features[:b]))
    pooled = -jnp.take_along_axis(pooled, classes[..., None], axis=2)[..., 0]
    there = classes > 0
    pooled = (pooled * there).sum() / there.sum()
    # Objects cover a quarter of the cells; they count as much as the background.
    weight = jnp.where(shares[..., 0] < 0.5, 2.0, 0.5)
    alone = (alone * mask).sum() / jnp.maximum(mask.sum(), 1)
    largest = shares.argmax(-1)[..., None]
    sure = (largest[..., 0] > 0) & (shares.max(-1) > 0.7)
    hit = log_p[:b].argmax(-1) == jnp.take_along_axis(names, largest, axis=3)[..., 0]
    return (weight * whole).mean() + alone + pooled, {
        "alone": alone,
        "pooled": pooled,
        "accuracy": (hit & sure).sum() / jnp.maximum(sure.sum(), 1),
    }


def scores(network: ResNet, episodes: int = 200) -> dict[str, float]:
    """How well the frozen features tell the 20 unseen classes of Shapes-5i apart.

    `knn_prior` and `knn_merged`: accuracy of the nearest neighbour by cosine among the other
    references of `episodes` test episodes of every fold, from features averaged over the
    annotation. `prior`: mean IoU of the cosine prior at the threshold that is best over all.
    """

    @jax.jit
    def describe(episode):
        query = backbone.target_taps(network, resize.normalize(episode.target_image))
        images = resize.normalize(episode.reference_image[:, 0])
        mask = episode.reference_mask[:, 0, ..., None].astype(jnp.float32)
        mask = resize.nearest(mask, query.merged.shape[1:3])[..., 0]
        support = backbone.reference_taps(network, images, mask)
        prior = equations_fast.cosine_prior(query.prior, support.prior, mask)[..., None]
        prior = resize.bilinear(prior, episode.target_mask.shape[1:], align_corners=True)[..., 0]
        above = prior[None] > jnp.asarray(THRESHOLDS).reshape(-1, 1, 1, 1)
        truth = episode.target_mask[None]
        iou = (above & truth).sum((2, 3)) / (above | truth).sum((2, 3))
        return [unit(equations.masked_average(x, mask)) for x in support], iou

    found = {"prior": [], "merged": [], "iou": [], "class": []}
    for fold in range(4):
        source = shapes_episodes(DataConfig.of(name="shapes", fold=fold, image_size=128), "test",
                                 seed=321, length=episodes)  # fmt: skip
        for episode in make_loader(source, batch_size=8):
            (merged, prior), iou = describe(episode)
            for name, x in (("prior", prior), ("merged", merged), ("iou", iou.T),
                            ("class", episode.class_id)):  # fmt: skip
                found[name] += list(np.asarray(x)[episode.valid])
    labels = np.array(found["class"])
    result = {}
    for name in ("prior", "merged"):
        features = np.stack(found[name])
        likeness = features @ features.T
        likeness[likeness > 1 - 1e-5] = -1  # the same reference again
        result[f"knn_{name}"] = float((labels[likeness.argmax(1)] == labels).mean())
    return result | {"prior": float(np.stack(found["iou"]).mean(0).max())}


THRESHOLDS = np.linspace(0, 0.98, 50, dtype=np.float32)


def fresh(cfg: fitting.Settings) -> Classifier:
    """The network before training."""
    rngs = nnx.Rngs(cfg.seed)
    network = backbone.build(BackboneConfig(name="shapes"), rngs=rngs)
    assert isinstance(network, ResNet)
    return Classifier(network, rngs=rngs)


def frozen(model: Classifier) -> ResNet:
    """The trained network with norms that use the running statistics."""
    network = nnx.eval_shape(
        lambda: backbone.build(BackboneConfig(name="shapes"), rngs=nnx.Rngs(0))
    )
    return nnx.merge(nnx.graphdef(network), nnx.state(model.network))


def main() -> None:
    """Trains, scores and writes the file."""
    cfg = fitting.parse(DEFAULT)
    network = frozen(fitting.fit(cfg, fresh(cfg), loss))
    script = "packaged/shapes_backbone.py"
    fitting.write(cfg, network, kind="backbone", script=script, scores=scores(network))


if __name__ == "__main__":
    main()
