"""Trains the packaged small SAM by promptable segmentation, as SAM itself was trained.

    python packaged/shapes_sam.py

Six objects of every picture are prompted: four by a click each and two by an inexact box. A second
click corrects each click where the answer was wrong, in half the cases with that answer as a mask
prompt. A click on each of two objects asks for both.

A second run adds descriptions, much as SAM's text prompts were trained on embeddings of the
object's crop: the packaged backbone's average features of a class's objects in another picture.
Without it the decoder uses positions only: even prompts learned freely for a class reach no more
than an IoU of 0.28 on their own training pictures.
Stopped runs go on from their checkpoints. Both together take about half an hour.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any, cast

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt8

from packaged import fitting
from prosam_jax import backbone, equations, resize
from prosam_jax.config import PACKAGED, BackboneConfig, SAMConfig
from prosam_jax.data.datasets.shapes import Shapes
from prosam_jax.equations import foreground
from prosam_jax.sam import Sam
from prosam_jax.sam.mlp import MLP
from prosam_jax.weights import files

OUT = pathlib.Path(__file__).resolve().parents[1] / "prosam_jax/pretrained/sam_shapes.safetensors"
DEFAULT = fitting.Settings(
    out=OUT,
    workdir=pathlib.Path("runs/shapes_sam"),
    steps=2500,
    batch_size=4,
    count=6000,
    learning_rate=1.5e-3,
)
SECOND_RUN = 0.6  # steps of the second run, as a share of the first run's
FOCAL_WEIGHT = 10.0  # of the focal loss, relative to the dice loss
REFERENCES = 2  # descriptions for each picture
WORDS = 4  # tokens of a description


def fresh(cfg: fitting.Settings) -> Sam:
    """SAM before training.

    Between prompts and image, queries and keys begin with the same projection, so that a click
    attends to its own place from the first step. Learning this takes most of a short training.
    """
    sam = Sam(SAMConfig.shapes(), rngs=nnx.Rngs(cfg.seed))
    transformer = sam.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for block in transformer.layers:
        attentions += [block.cross_attn_token_to_image, block.cross_attn_image_to_token]
    for attention in attentions:
        kernel = attention.q_proj.kernel[...]
        for projection in (attention.q_proj, attention.k_proj):
            projection.kernel[...] = 2 * kernel
            assert projection.bias is not None
            projection.bias[...] = jnp.zeros_like(projection.bias[...])
    return sam


class Described(nnx.Module):
    """SAM, and a network that turns the backbone's features of objects into tokens for it."""

    def __init__(self, sam: Sam, *, rngs: nnx.Rngs):
        dim = sam.cfg.prompt_embed_dim
        self.sam = sam
        self.threshold = nnx.Param(jnp.array(-2.0))
        channels = _seen_by().merged_channels
        self.words = MLP(channels, 192, WORDS * dim, 2, dtype=jnp.float32, rngs=rngs)

    def tokens(
        self, images: Float[Array, "b n n 3"], target: Float[Array, "b h w"]
    ) -> Float[Array, "b w c"]:
        """Tokens that describe the annotated part of each image by its average features."""
        merged, _ = _seen_by().trunk(self.sam.preprocess(images))
        merged = jax.lax.stop_gradient(merged)
        _, i, j, _ = merged.shape
        b, h, w = target.shape
        weight = target.reshape(b, i, h // i, j, w // j).mean((2, 4))
        pooled = equations.masked_average(merged, weight)
        pooled *= jax.lax.rsqrt(jnp.square(pooled).mean(-1, keepdims=True) + 1e-6)
        return self.words(pooled).reshape(b, WORDS, -1)

    def pointed(
        self,
        tokens: Float[Array, "b w c"],
        embeddings: Float[Array, "b i j c"],
        target: Float[Array, "b h w"],
    ) -> Float[Array, ""]:
        """Cross-entropy of classifying cells as target by their product with the first token.

        It speeds up training: it makes the token and the image's features of the target alike,
        which the decoder then uses.
        """
        b, i, j, c = embeddings.shape
        share = target.reshape(b, i, target.shape[1] // i, j, -1).mean((2, 4))
        found = jnp.einsum("bc,bijc->bij", tokens[:, 0], embeddings) * c**-0.5
        found += self.threshold[...].reshape(1, 1, 1)
        return FOCAL_WEIGHT * (jax.nn.softplus(found) - share * found).mean()


@functools.cache
def _seen_by() -> Any:
    """The packaged backbone."""
    cfg = BackboneConfig("shapes", PACKAGED)
    return files.load(
        lambda rngs: cast(Any, backbone.build(cfg, rngs=rngs)),
        cfg.weight_file(),
        kind="backbone",
        architecture=cfg.name,
        made_by="python packaged/shapes_backbone.py",
    )


def loss(
    sam: Sam, batch: fitting.Batch, key: PRNGKeyArray
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mask and IoU losses over all clicks and boxes of a batch, and the IoU by kind of prompt.

    Args:
        sam: The network.
        batch: Pictures.
        key: Draws the prompts.
    """
    images, objects, classes, _ = batch
    embeddings = sam.encode_image(sam.preprocess(images))
    return _by_place(sam, embeddings, _shares(objects), classes, key)


def described_loss(
    network: Described, batch: fitting.Batch, key: PRNGKeyArray
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`loss`, and that of `REFERENCES` descriptions for each picture, each from another picture."""
    images, objects, classes, wanted = batch
    sam, cells = network.sam, _shares(objects)
    b = len(wanted) // REFERENCES
    embeddings = sam.encode_image(sam.preprocess(images[:b]))
    value, logs = _by_place(sam, embeddings, cells[:b], classes[:b], key)
    which = jnp.concatenate([jnp.tile(jnp.arange(b), REFERENCES), jnp.arange(b, len(images))])
    same = (classes[which] == jnp.tile(wanted, 2)[:, None]).astype(jnp.float32)
    target, marked = jnp.split(jnp.einsum("bhwo,bo->bhw", cells[which], same), 2)
    sparse = network.tokens(images[b:], marked)
    dense = sam.prompt_encoder(prompts=sparse)[1]
    embeddings = jnp.concatenate([embeddings] * REFERENCES)
    _, described, found = answer(sam, embeddings, sparse, dense, target)
    pointed = network.pointed(sparse, embeddings, target)
    return value + described + pointed, logs | {"described": found.mean(), "pointed": pointed}


def _shares(objects: UInt8[Array, "b n n"]) -> Float[Array, "b h w o"]:
    """How much of each cell of two by two pixels an object covers; the background is object 0."""
    b, n, _ = objects.shape
    return jax.nn.one_hot(objects, 7).reshape(b, n // 2, 2, n // 2, 2, 7).mean((2, 4))


def _by_place(
    sam: Sam,
    embeddings: Float[Array, "b i j c"],
    cells: Float[Array, "b h w o"],
    classes: Int32[Array, "b o"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    keys = jax.random.split(key, 7)
    b = len(cells)
    lots = jax.random.uniform(keys[0], (b, 6)) + 9.0 * (classes[:, 1:] == 0)
    there = (classes > 0).sum(1)
    turns = jnp.arange(6)[None] % there[:, None]  # repeats from the first if there are fewer
    order = jnp.take_along_axis(jnp.argsort(lots), turns, axis=1) + 1
    shares = jnp.take_along_axis(cells, order[:, None, None], axis=3)
    target = jnp.concatenate(jnp.moveaxis(shares, 3, 0))  # (6 b, h, w)
    encode, ones = sam.prompt_encoder, jnp.ones((4 * b, 1), jnp.int32)

    # Clicks and boxes have two tokens each, so they are decoded together.
    first = pixel_in(keys[1], target[: 4 * b] > 0.5)[:, None]
    box = jittered(keys[2], boxes(target[4 * b :] > 0.5))
    clicks, dense = encode(points=first, labels=ones)
    corners, none = encode(boxes=box)
    sparse, dense = (jnp.concatenate(x) for x in ((clicks, corners), (dense, none)))
    logits, value, found = answer(sam, jnp.concatenate([embeddings] * 6), sparse, dense, target)

    # Each click with a second one where the answer was wrong; and a click on each of two objects.
    clicked = jax.lax.stop_gradient(logits[: 4 * b])
    inside = target[: 4 * b] > 0.5
    second = pixel_in(keys[3], foreground(clicked) != inside)
    column, row = (second // 2).astype(jnp.int32).T
    missed = inside[jnp.arange(4 * b), row, column].astype(jnp.int32)
    points = jnp.concatenate([first, second[:, None]], axis=1)
    clicks, dense = encode(points=points, labels=jnp.stack([ones[:, 0], missed], axis=1))
    given = jax.random.bernoulli(keys[4], shape=(4 * b, 1, 1, 1))
    dense = jnp.where(given, encode.embed_masks(clicked[..., None]), dense)
    two = jnp.moveaxis(shares[..., 1:3], 3, 0)
    points = jnp.stack([pixel_in(k, x > 0.5) for k, x in zip(keys[5:], two, strict=True)], axis=1)
    pairs, none = encode(points=points, labels=jnp.ones((b, 2), jnp.int32))
    sparse, dense = (jnp.concatenate(x) for x in ((clicks, pairs), (dense, none[:b])))
    target = jnp.concatenate([target[: 4 * b], two.sum(0)])
    several = jnp.concatenate([embeddings] * 5)
    _, corrected_value, corrected = answer(sam, several, sparse, dense, target)
    logs = {
        "click": found[: 4 * b],
        "box": found[4 * b :],
        "corrected": corrected[: 4 * b],
        "pair": corrected[4 * b :],
    }
    return value + corrected_value, {name: x.mean() for name, x in logs.items()}


def answer(
    sam: Sam,
    embeddings: Float[Array, "b i j c"],
    sparse: Float[Array, "b q c"],
    dense: Float[Array, "b i j c"],
    target: Float[Array, "b h w"],
) -> tuple[Float[Array, "b h w"], Float[Array, ""], Float[Array, " b"]]:
    """Decodes prompts and scores all four masks.

    The loss takes the single mask and the best of the three others, because a click is ambiguous.
    The IoU head learns the IoU of every mask.

    Returns:
        Logits of the single mask, the loss, and the single mask's IoU.
    """
    decoder = sam.mask_decoder
    tokens, image = decoder.attend(embeddings, sam.prompt_encoder.dense_pe(), sparse, dense)
    logits = decoder.predict_masks(tokens, decoder.upscale(image), range(4))
    truth = target[:, None]
    p = jax.nn.sigmoid(logits)
    entropy = jax.nn.softplus(logits) - truth * logits
    focal = (jnp.square(p - truth) * entropy).mean((2, 3))
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    mask_loss = FOCAL_WEIGHT * focal + dice
    found = iou(foreground(logits), truth > 0.5)
    iou_loss = jnp.square(decoder.predict_iou(tokens) - found).mean()
    value = (mask_loss[:, 0] + mask_loss[:, 1:].min(axis=1)).mean() + iou_loss
    return logits[:, 0], value, found[:, 0]


def iou(a: Bool[Array, "*b h w"], b: Bool[Array, "*b h w"]) -> Float[Array, "*b"]:
    """Intersection over union of masks; 1 where both are empty."""
    union = (a | b).sum((-2, -1))
    return jnp.where(union > 0, (a & b).sum((-2, -1)) / jnp.maximum(union, 1), 1.0)


def pixel_in(key: PRNGKeyArray, mask: Bool[Array, "b h w"]) -> Float[Array, "b 2"]:
    """A pixel of each mask, drawn uniformly, in pixels (x, y) of twice the mask's size.

    For an empty mask it is any pixel.
    """
    b, h, w = mask.shape
    place_key, odd_key = jax.random.split(key)
    weight = jax.random.uniform(place_key, (b, h * w)) + mask.reshape(b, h * w)
    place = weight.argmax(axis=1)
    odd = jax.random.bernoulli(odd_key, shape=(b, 2))
    return (2 * jnp.stack([place % w, place // w], axis=1) + odd).astype(jnp.float32)


def boxes(mask: Bool[Array, "b h w"]) -> Float[Array, "b 4"]:
    """The boxes around masks: x0, y0, x1, y1 in pixels of twice the mask's size."""
    sides = []
    for axis in (1, 2):
        line = mask.any(axis)
        sides += [line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)]
    left, right, top, bottom = sides
    return 2.0 * jnp.stack([left, top, right, bottom], axis=1).astype(jnp.float32)


def jittered(key: PRNGKeyArray, box: Float[Array, "b 4"]) -> Float[Array, "b 4"]:
    """Boxes with corners moved by about a tenth of their sides, as in SAM's training."""
    sides = jnp.tile(box[:, 2:] - box[:, :2], (1, 2))
    return box + 0.1 * sides * jnp.clip(jax.random.normal(key, box.shape), -2, 2)


def scores(sam: Sam, count: int = 50) -> dict[str, float]:
    """Mean IoU on the first test pictures of each fold of Shapes-5i, whose classes are unseen.

    It scores the classes that a picture shows once: from one click at the innermost pixel (the
    single mask, and of the three others the one that the IoU head ranks best), from the box, and
    from no prompt.
    """

    @jax.jit
    def answers(image, point, box):
        one = jnp.ones((1, 1), jnp.int32)
        click = sam(image, points=point, labels=one)
        several = sam(image, points=point, labels=one, multimask_output=True)
        preferred = jnp.take(several.masks[0], several.iou[0].argmax(), axis=0)
        boxed = sam(image, boxes=box)
        return jnp.stack([click.masks[0, 0], preferred, boxed.masks[0, 0], sam(image).masks[0, 0]])

    names = ("click", "click_preferred", "box", "empty")
    found, pictures = [], Shapes(sam.cfg.image_size[0])
    for image_id in (f"f{fold}-test-{n:06d}" for fold in range(4) for n in range(count)):
        image, labels = np.asarray(pictures.image(image_id))[None], pictures.labels(image_id)
        shown = pictures.objects(image_id)
        for class_id in set(shown):
            if shown.count(class_id) > 1:
                continue
            mask = labels == class_id
            y, x = np.nonzero(mask)
            box = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], np.float32)
            masks = answers(image, innermost(mask)[None, None], box)
            found.append(iou(masks, jnp.broadcast_to(mask[None], masks.shape)))
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def innermost(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 2"]:
    """The pixel (x, y) of a mask that is farthest from its border, counted in erosions."""
    inner = np.pad(mask, 1)
    while inner.any():
        last = inner
        inner = inner.copy()
        for axis in (0, 1):
            for shift in (-1, 1):
                inner &= np.roll(last, shift, axis)
    y, x = np.nonzero(last[1:-1, 1:-1])
    return np.array([x[len(x) // 2], y[len(y) // 2]], np.float32)


def described_score(network: Described, count: int = 50) -> float:
    """Mean IoU of every class on the pictures of `scores`, described by the next one showing it."""
    decode = jax.jit(lambda *given: _described(network, *given))
    found, pictures = [], Shapes(network.sam.cfg.image_size[0])
    for fold in range(4):
        ids = [f"f{fold}-test-{n:06d}" for n in range(count)]
        shown = [set(pictures.objects(image_id)) for image_id in ids]
        for here, class_id in ((n, c) for n in range(count) for c in shown[n]):
            there = next(
                m % count for m in range(here + 1, count + here) if class_id in shown[m % count]
            )
            image, reference = (np.asarray(pictures.image(ids[n]))[None] for n in (here, there))
            mask, marked = (pictures.labels(ids[n])[None] == class_id for n in (here, there))
            found.append(iou(decode(image, reference, marked), mask))
    return float(np.mean(found))


def _described(
    network: Described,
    image: UInt8[Array, "b n n 3"],
    reference: UInt8[Array, "b n n 3"],
    marked: Bool[Array, "b n n"],
) -> Bool[Array, "b n n"]:
    sam, n = network.sam, marked.shape[1]
    tokens = network.tokens(reference.astype(jnp.float32), marked.astype(jnp.float32))
    sparse, dense = sam.prompt_encoder(prompts=tokens)
    logits, _ = sam.decode(sam.encode_image(sam.preprocess(image)), sparse, dense)
    logits = resize.bilinear(jnp.moveaxis(logits, 1, -1), (n, n), align_corners=False)
    return foreground(logits[..., 0])


def main() -> None:
    """Trains, scores and writes the file."""
    cfg = fitting.parse(DEFAULT)
    sam = fitting.fit(cfg, fresh(cfg), loss)
    second = dataclasses.replace(cfg, steps=round(SECOND_RUN * cfg.steps))
    network = Described(sam, rngs=nnx.Rngs(cfg.seed))
    network = fitting.fit(second, network, described_loss, name="described", references=REFERENCES)
    found = scores(network.sam) | {"described": described_score(network)}
    fitting.write(cfg, network.sam, kind="sam", script="packaged/shapes_sam.py", scores=found)


if __name__ == "__main__":
    main()
