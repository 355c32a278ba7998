"""What trained runs predict for the study of uncertainty: scores of pixels and masks, by name."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import calibration, inference
from prosam_jax.atomic import replacing
from prosam_jax.config import Config, replaced
from prosam_jax.data import datasets
from prosam_jax.data.datasets.shapes import SCENE_SEED, SHAPES_5I, Shapes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import FoldIndex
from prosam_jax.data.loader import make_loader
from prosam_jax.equations import foreground
from prosam_jax.evaluation import evaluate
from prosam_jax.model import ProSAM, load, split
from prosam_jax.types import Episode

SPREADS = (1.0, 3.0, 10.0, 30.0)
"""Factors on the trained scale sigma."""

SAMPLES = 10
ENTROPY = "entropy of the mean prompts' mask"
BOTH = "entropy of the averaged seeds"
SEEDS = "disagreement of the seeds (mutual information)"
BLURRED = {f: f"entropy of the averaged samples, sigma x {f:g}" for f in SPREADS}
DISAGREEMENT = {f: f"disagreement of samples (mutual information), sigma x {f:g}" for f in SPREADS}
SPREAD = {f: f"standard deviation of samples, sigma x {f:g}" for f in SPREADS}

CERTAINTY = "mean entropy of the picture's pixels, negated"
INSIDE = "mean probability inside the mask"
SAM = "SAM's predicted IoU"
EXPECTED = "expected IoU"
SCALED = "expected IoU, temperature of base classes"
AVERAGED = "expected IoU by the averaged seeds"
PAIRS = {f: f"mean IoU of pairs of samples, sigma x {f:g}" for f in SPREADS}
SOFTENED = {f: f"expected IoU by the averaged samples, sigma x {f:g}" for f in SPREADS}
SEED_PAIRS = "mean IoU of pairs of seeds"

LEVELS = 400
"""Levels to which scores of pixels are rounded: 40 for each power of ten from 1e-10 to 1."""

PIXEL_BINS, MASK_BINS = 15, 10


@dataclasses.dataclass
class Found:
    """What one run predicted on its n test episodes.

    Attributes:
        temperature: Fitted on base classes of pictures not seen in training ("base"), on those
            seen in training ("seen"), and on the test episodes themselves ("novel").
        target: The target picture of each episode.
        truth: True masks; logits: those of the mean prompts.
        levels: By score of pixels: how many pixels of each episode have each level, and how many of
            them are wrong in the mean prompts' mask.
        masks: By score of masks: one number for each episode.
        reliability: By name of what gives pixels probabilities: the reliability of each episode.
        log_loss: By the same names: the mean log loss of each episode's pixels, in nats.
    """

    temperature: dict[str, float]
    target: np.ndarray
    truth: np.ndarray
    logits: np.ndarray
    levels: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    reliability: dict[str, np.ndarray]
    log_loss: dict[str, np.ndarray]

    @property
    def iou(self) -> Float[np.ndarray, " n"]:
        """The true IoU of each mean prompts' mask."""
        return iou(foreground(self.logits), self.truth)

    @property
    def wrong(self) -> np.ndarray:
        """Pixels at which the mean prompts' mask is wrong."""
        return foreground(self.logits) != self.truth


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of masks; of two empty ones 1."""
    union = (a | b).sum((-2, -1))
    return np.where(union > 0, (a & b).sum((-2, -1)) / np.maximum(union, 1), 1.0)


def levelled(score: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Pixels and wrong pixels (n, 2, LEVELS) of n maps by the level of their score in [0, 1]."""
    with np.errstate(divide="ignore"):
        level = np.clip(LEVELS + np.floor(40 * np.log10(score)), 0, LEVELS - 1).astype(int)
    counts = [
        [np.bincount(one.ravel(), minlength=LEVELS), np.bincount(one[bad], minlength=LEVELS)]
        for one, bad in zip(level, wrong, strict=True)
    ]
    return np.array(counts, np.int32)


def per_picture(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Reliability (n, 3, bins) of the labels of maximal probability, given P(foreground)."""
    sure, right = np.maximum(p, 1 - p), (p > 0.5) == truth
    return np.array(
        [
            calibration.reliability(a.ravel(), b.ravel(), PIXEL_BINS)
            for a, b in zip(sure.astype(np.float64), right, strict=True)
        ]
    )


@functools.partial(jax.jit, static_argnames=("graph", "sampled"))
def judged(
    graph: nnx.GraphDef, params: nnx.State, frozen: nnx.State, episode: Episode, *, sampled: bool
) -> dict[str, Array]:
    """Logits, SAM's IoU and, for each spread, maps of the samples and the IoU of their pairs."""
    prosam: ProSAM = nnx.merge(graph, params, frozen)
    features = prosam.encode(episode)
    posterior = prosam.posterior(features)
    size = episode.target_mask.shape[1:]
    logits, sam = prosam.decode_with_iou(features.image_embeddings, posterior.mean, size)
    found = {"logits": logits, SAM: sam}
    if not sampled:
        return found
    assert posterior.log_scale is not None
    for factor in SPREADS:
        wider = posterior._replace(log_scale=posterior.log_scale + jnp.log(factor))
        prompts = inference.sampled_prompts(prosam, wider, SAMPLES, jax.random.key(0))
        drawn = jax.lax.map(lambda p: prosam.decode(features.image_embeddings, p, size), prompts)
        p = jax.nn.sigmoid(drawn)
        found[f"p {factor:g}"] = p.mean(0)
        found[DISAGREEMENT[factor]] = inference.disagreement(drawn)
        found[SPREAD[factor]] = p.std(0)
        found[PAIRS[factor]] = pairwise_iou(drawn)
    return found


def pairwise_iou(logits: Float[Array, "k b h w"]) -> Float[Array, " b"]:
    """Mean IoU of the pairs of k masks; a pair of empty masks counts as 1."""
    masks = foreground(logits).astype(jnp.float32)
    both = jnp.einsum("kbhw,lbhw->klb", masks, masks)
    area = masks.sum((2, 3))
    union = area[:, None] + area[None] - both
    of_pair = jnp.where(union > 0, both / jnp.maximum(union, 1), 1.0)
    k = len(logits)
    return (of_pair.sum((0, 1)) - k) / (k * (k - 1))


def over(source: EpisodeSource, batch_size: int, judge: Callable[[Episode], Any]) -> dict[str, Any]:
    """The outputs of `judge`, and the true masks, of all episodes."""
    batches: list[dict[str, Any]] = []
    for episode in make_loader(source, batch_size=batch_size):
        found = jax.device_get(judge(episode)) | {"truth": episode.target_mask}
        batches.append({name: x[episode.valid] for name, x in found.items()})
    return {name: np.concatenate([x[name] for x in batches]) for name in batches[0]}


def base_classes(cfg: Config, length: int, *, seen: bool) -> EpisodeSource:
    """Episodes of a fold's base classes, in its training pictures or in others of their kind.

    The others are drawn by the same rules from another seed of the benchmark.
    """
    source = datasets.episodes(cfg.data, "train", seed=cfg.eval.seed, length=length)
    if seen:
        return source
    pictures, fold = Shapes(cfg.data.image_size, SCENE_SEED + 1), source.fold
    shown = {i: pictures.objects(i) for i in fold.images}
    entries = {c: tuple(i for i in fold.images if c in shown[i]) for c in fold.classes}
    new = FoldIndex(SHAPES_5I, fold.fold, "train", entries).drawable(cfg.data.shots)
    return dataclasses.replace(source, images=pictures, fold=new)


def predicted(path: pathlib.Path, episodes: int) -> Found:
    """What a run predicts for its test episodes, and its temperatures."""
    prosam, cfg = load(path, {})
    cfg = replaced(cfg, {"eval.episodes": episodes})
    parts = split(prosam)
    judge = functools.partial(judged, parts.graph, parts.params, parts.frozen)
    still = functools.partial(judge, sampled=False)
    test = evaluate.test_episodes(cfg)
    sampled = cfg.distribution.name in ("gaussian", "student_t")
    whole = over(test, 4, functools.partial(judge, sampled=sampled))
    logits, truth = whole.pop("logits"), whole.pop("truth")
    temperature = {"novel": calibration.fit_temperature(logits, truth)}
    for name, seen in {"base": False, "seen": True}.items():
        fitting = over(base_classes(cfg, episodes, seen=seen), 4, still)
        temperature[name] = calibration.fit_temperature(fitting["logits"], fitting["truth"])
    found = Found(
        temperature=temperature,
        target=np.array([test.spec(i).target_id for i in range(len(test))]),
        truth=truth,
        logits=logits,
        levels={},
        masks={SAM: whole[SAM]},
        reliability={},
        log_loss={},
    )
    for factor in SPREADS if sampled else ():
        p = whole[f"p {factor:g}"]
        found.levels[BLURRED[factor]] = levelled(entropy_of(p), found.wrong)
        for name in (DISAGREEMENT[factor], SPREAD[factor]):
            found.levels[name] = levelled(whole[name], found.wrong)
        found.masks[PAIRS[factor]] = whole[PAIRS[factor]]
        found.masks[SOFTENED[factor]] = promised(p, foreground(logits))
        found.reliability[BLURRED[factor]] = per_picture(p, truth)
        found.log_loss[BLURRED[factor]] = log_loss(p, truth)
    of_mean = calibration.entropy(logits)
    found.levels[ENTROPY] = levelled(of_mean, found.wrong)
    found.masks |= {
        CERTAINTY: -of_mean.mean((1, 2)),
        INSIDE: mean_inside(logits),
        EXPECTED: np.asarray(calibration.expected_iou(logits)),
        SCALED: np.asarray(calibration.expected_iou(logits / temperature["base"])),
    }
    for name, t in {"none": 1.0, **temperature}.items():
        p = np.asarray(jax.nn.sigmoid(logits / t))
        found.reliability[name] = per_picture(p, truth)
        found.log_loss[name] = log_loss(p, truth)
    return found


def examples(path: pathlib.Path, count: int) -> dict[str, np.ndarray]:
    """Targets ("image"), true masks ("truth") and `judged` of the first test episodes."""
    prosam, cfg = load(path, {})
    parts = split(prosam)
    source = evaluate.test_episodes(replaced(cfg, {"eval.episodes": count}))
    episode = next(make_loader(source, batch_size=count))
    found = jax.device_get(judged(*parts, episode, sampled=True))
    return found | {"image": episode.target_image, "truth": episode.target_mask}


def kept(path: pathlib.Path, episodes: int, keep: pathlib.Path) -> Found:
    """`predicted`, from the file in `keep` if there is one."""
    file = keep / f"{path.name}-{episodes}.npz"
    if not file.exists():
        new = dataclasses.asdict(predicted(path, episodes))
        flat = {
            f"{field}/{name}": value
            for field, values in new.items()
            for name, value in (values if isinstance(values, dict) else {"": values}).items()
        }
        keep.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part, part.open("wb") as stream:
            np.savez(stream, **flat)
    held: dict[str, Any] = {}
    for key, value in np.load(file).items():
        field, name = key.split("/", 1)
        if name:
            held.setdefault(field, {})[name] = value
        else:
            held[field] = value
    held["temperature"] = {name: float(t) for name, t in held["temperature"].items()}
    return Found(**held)


def mean_inside(logits: np.ndarray) -> np.ndarray:
    """Mean probability inside each mask, 0 if it is empty."""
    p, mask = probabilities(logits), foreground(logits)
    return (p * mask).sum((1, 2)) / np.maximum(mask.sum((1, 2)), 1)


def promised(p: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`calibration.expected_iou` of given masks by given probabilities."""
    both, either = (p * mask).sum((1, 2)), np.where(mask, 1, p).sum((1, 2))
    return both / np.maximum(either, 1e-30)


def log_loss(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean log loss, in nats, of each picture's pixels."""
    return -np.log(np.maximum(np.where(truth, p, 1 - p), 1e-7)).mean((1, 2))


def entropy_of(p: np.ndarray) -> np.ndarray:
    """Entropy in bits of probabilities."""
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def ensemble(members: list[Found]) -> Found:
    """The mean of the probabilities of several seeds, taken for a model of its own."""
    p = np.clip(np.mean([probabilities(x.logits) for x in members], axis=0), 1e-7, 1 - 1e-7)
    logits, truth = np.log(p / (1 - p)), members[0].truth
    found = dataclasses.replace(members[0], logits=logits, temperature={}, levels={}, masks={})
    found.levels[ENTROPY] = levelled(entropy_of(p), found.wrong)
    found.masks[EXPECTED] = promised(p, foreground(logits))
    found.reliability = {"none": per_picture(p, truth)}
    found.log_loss = {"none": log_loss(p, truth)}
    return found


def with_seeds(members: list[Found]) -> None:
    """Adds the scores that need all seeds to each of them, for its own masks and errors."""
    each = np.stack([probabilities(x.logits) for x in members])
    p = each.mean(0)
    disagreement = np.clip(entropy_of(p) - entropy_of(each).mean(0), 0, 1)
    pairs = np.asarray(pairwise_iou(jnp.stack([x.logits for x in members])))
    for one in members:
        one.levels[BOTH] = levelled(entropy_of(p), one.wrong)
        one.levels[SEEDS] = levelled(disagreement, one.wrong)
        one.masks[AVERAGED] = promised(p, foreground(one.logits))
        one.masks[SEED_PAIRS] = pairs


def probabilities(logits: np.ndarray) -> np.ndarray:
    """P(foreground)."""
    return np.asarray(jax.nn.sigmoid(logits))
