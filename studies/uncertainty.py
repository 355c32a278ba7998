"""Which number tells best where a mask is wrong, and which mask.

    python -m studies.uncertainty --runs=runs/methods --keep=/tmp/uncertainty [--out=docs]

`--runs` holds the runs of `prosam reproduce --table methods --seeds 3`, whose prompt encoders are
asked about the novel classes of their folds. Every score of a pixel or of a mask is judged by the
errors of the same masks, those of the mean prompts. Temperatures are fitted on base classes in
pictures that no run was trained on. Writes docs/studies/uncertainty.json and the figures
docs/images/uncertainty_*.png. What a run predicted stays in `--keep` for the next call.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from prosam_jax import calibration, inference
from prosam_jax.atomic import replacing
from prosam_jax.calibration import Reliability
from prosam_jax.config import Config, replaced
from prosam_jax.data import datasets
from prosam_jax.data.datasets.shapes import SCENE_SEED, SHAPES_5I, Shapes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import FoldIndex
from prosam_jax.data.loader import make_loader
from prosam_jax.equations import foreground
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate, intervals
from prosam_jax.model import ProSAM, load, split
from prosam_jax.types import Episode

METHODS = {"student_t": "Student-t", "gaussian": "Gaussian", "vrp": "VRP-SAM"}
SPREADS = (1.0, 3.0, 10.0, 30.0)
"""Factors on the trained scale sigma."""

SAMPLES = 10
DRAWS = 1000

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


@dataclasses.dataclass(frozen=True)
class Drawn:
    """How often a bootstrap draws the episodes and the seeds of a fold; row 0 is the result itself.

    Pictures are drawn with all their episodes, the same for all methods and scores, so that
    differences are paired.
    """

    episodes: Float[np.ndarray, "d n"]
    seeds: Float[np.ndarray, "d s"]

    @classmethod
    def of(cls, target: np.ndarray, seeds: int, fold: int) -> "Drawn":
        """The draws for a list of episodes with these target pictures."""
        rng = np.random.default_rng(fold)
        _, which = np.unique(target, return_inverse=True)
        n = which.max() + 1
        times = rng.multinomial(n, np.full(n, 1 / n), DRAWS)[:, which].astype(float)
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
        return cls(
            np.concatenate([np.ones((1, len(target))), times]),
            np.concatenate([np.full((1, seeds), 1 / seeds), of_seeds]),
        )

    def only(self) -> "Drawn":
        """The same pictures, and one model, such as an ensemble, in place of the seeds."""
        return Drawn(self.episodes, np.ones((DRAWS + 1, 1)))


Folds = list[tuple[Drawn, list[Found]]]
"""For each fold its draws and the models of its seeds."""


def averaged(folds: Folds, value: Callable[[Found, np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean over folds and seeds of a value of (a model, draws of its episodes), for each draw."""
    of_folds = [
        np.sum([drawn.seeds[:, i] * value(x, drawn.episodes) for i, x in enumerate(models)], axis=0)
        for drawn, models in folds
    ]
    return np.mean(of_folds, axis=0)


def pixel_area(name: str, one: Found, times: np.ndarray) -> np.ndarray:
    """Excess AURC of a score of pixels: 0 is the oracle's, 1 that of chance."""
    count, wrong = (times @ one.levels[name][:, i].astype(float) for i in (0, 1))
    rate = np.divide(wrong, count, out=np.zeros_like(wrong), where=count > 0)
    area = calibration.aurc(-np.arange(float(LEVELS)), rate, count)
    e = wrong.sum(1) / count.sum(1)
    oracle = e + (1 - e) * np.log1p(-e)
    return (area - oracle) / (e - oracle)


def mask_area(name: str, one: Found, times: np.ndarray) -> np.ndarray:
    """The same for a score of masks, whose loss is 1 - IoU."""
    loss = 1 - one.iou
    excess = calibration.excess_aurc(one.masks[name].astype(float), loss, times)
    return excess / (times @ loss / times.sum(1) - calibration.aurc(-loss, loss, times))


def pixel_reliability(name: str, one: Found, times: np.ndarray) -> Reliability:
    """Reliability of pixels in each draw."""
    return Reliability(*(times @ one.reliability[name][:, i] for i in range(3)))


def mask_reliability(name: str, folds: Folds) -> Reliability:
    """Reliability of masks in each draw, over all folds and seeds, since each has few masks."""
    total = Reliability(*np.zeros((3, DRAWS + 1, MASK_BINS)))
    for drawn, models in folds:
        for i, one in enumerate(models):
            of_episodes = np.array(
                [
                    calibration.reliability(a[None], b[None], MASK_BINS)
                    for a, b in zip(
                        np.clip(one.masks[name], 0, 1).astype(float), one.iou, strict=True
                    )
                ]
            )
            weight = drawn.seeds[:, i, None] * drawn.episodes
            total = Reliability(*(x + weight @ of_episodes[:, j] for j, x in enumerate(total)))
    return total


def shown(values: np.ndarray) -> list[float]:
    """The result and the bounds of its interval."""
    low, high = intervals.interval(values[1:])
    return [round(float(x), 5) for x in (values[0], low, high)]


def measured(folds: Folds, pixels: list[str], masks: list[str]) -> dict[str, Any]:
    """All numbers of one method."""
    found: dict[str, Any] = {
        "mean IoU": shown(averaged(folds, lambda x, times: times @ x.iou / times.sum(1))),
        "wrong pixels": shown(
            averaged(folds, lambda x, times: times @ x.wrong.mean((1, 2)) / times.sum(1))
        ),
    }
    for kind, names, area, simplest in (
        ("pixels", pixels, pixel_area, ENTROPY),
        ("masks", masks, mask_area, CERTAINTY),
    ):
        areas = {name: averaged(folds, functools.partial(area, name)) for name in names}
        found[kind] = {
            name: {"excess AURC": shown(x)}
            | ({"difference": shown(x - areas[simplest])} if simplest in areas else {})
            for name, x in areas.items()
        }
    found["calibration of pixels"] = {
        name: {
            "ECE": shown(averaged(folds, lambda x, t, n=name: pixel_reliability(n, x, t).error)),
            "bias": shown(averaged(folds, lambda x, t, n=name: pixel_reliability(n, x, t).bias)),
            "log loss": shown(averaged(folds, lambda x, t, n=name: t @ x.log_loss[n] / t.sum(1))),
        }
        for name in folds[0][1][0].reliability
    }
    found["calibration of masks"] = {}
    for name in masks:
        if name == CERTAINTY:
            continue
        pooled = mask_reliability(name, folds)
        found["calibration of masks"][name] = {
            "ECE": shown(pooled.error),
            "bias": shown(pooled.bias),
            "mean absolute error": shown(
                averaged(folds, lambda x, t, n=name: t @ np.abs(x.masks[n] - x.iou) / t.sum(1))
            ),
        }
    found["temperature"] = {
        name: [[round(x.temperature[name], 3) for x in models] for _, models in folds]
        for name in folds[0][1][0].temperature
    }
    return found


COVERAGE = np.linspace(0.05, 1, 96)


def mean_curve(folds: Folds, curve: Callable[[Found], calibration.RiskCoverage]) -> np.ndarray:
    """Risk at `COVERAGE`, averaged over folds and seeds."""
    curves = [curve(x) for _, models in folds for x in models]
    return np.mean([np.interp(COVERAGE, x.coverage, x.risk) for x in curves], axis=0)


def pixel_curve(name: str, one: Found) -> calibration.RiskCoverage:
    """Risk-coverage curve of a score of pixels."""
    count, wrong = one.levels[name].sum(0).astype(float)
    rate = np.divide(wrong, count, out=np.zeros_like(wrong), where=count > 0)
    found = calibration.risk_coverage(-np.arange(float(LEVELS)), rate, count)
    return calibration.RiskCoverage(*(x[count.cumsum() > 0] for x in found))


def mask_curve(name: str, one: Found) -> calibration.RiskCoverage:
    """The same for a score of masks; "" is the oracle."""
    loss = 1 - one.iou
    return calibration.risk_coverage(one.masks[name].astype(float) if name else -loss, loss)


SHORT = {
    ENTROPY: "entropy of the mean prompts' mask",
    BLURRED[10.0]: "entropy of averaged samples, $\\sigma$ x 10",
    DISAGREEMENT[1.0]: "disagreement of samples",
    DISAGREEMENT[10.0]: "disagreement of samples, $\\sigma$ x 10",
    BOTH: "entropy of averaged seeds",
    SEEDS: "disagreement of seeds",
    CERTAINTY: "mean entropy of the picture",
    INSIDE: "mean probability inside",
    SAM: "SAM's predicted IoU",
    EXPECTED: "expected IoU",
    PAIRS[3.0]: "IoU of pairs of samples, $\\sigma$ x 3",
    PAIRS[10.0]: "IoU of pairs of samples, $\\sigma$ x 10",
    SEED_PAIRS: "IoU of pairs of seeds",
    AVERAGED: "expected IoU by averaged seeds",
}


def draw_coverage(folds: Folds, path: pathlib.Path, title: str) -> None:
    """Risk-coverage curves of pixels and of masks."""
    plt = pyplot()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name in (ENTROPY, BOTH, SEEDS, DISAGREEMENT[1.0], DISAGREEMENT[10.0]):
        risk = mean_curve(folds, functools.partial(pixel_curve, name))
        left.plot(COVERAGE, 100 * risk, label=SHORT[name])
    left.set(title="Pixels", xlabel="share of pixels kept", ylabel="of these wrong, %")
    left.set(yscale="log", ylim=(0.02, 10))
    for name in (CERTAINTY, INSIDE, SAM, EXPECTED, PAIRS[3.0], AVERAGED):
        risk = mean_curve(folds, functools.partial(mask_curve, name))
        right.plot(COVERAGE, 1 - risk, label=SHORT[name])
    oracle = mean_curve(folds, functools.partial(mask_curve, ""))
    right.plot(COVERAGE, 1 - oracle, "k:", label="oracle")
    right.set(title="Masks", xlabel="share of masks kept", ylabel="their mean IoU")
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
    fig.suptitle(title, fontsize=11)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def draw_calibration(folds: Folds, grouped: Folds, path: pathlib.Path, title: str) -> None:
    """Reliability of pixels and of masks."""
    plt = pyplot()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    lines = {
        "mean prompts": (folds, "none"),
        "temperature of base classes": (folds, "base"),
        "averaged samples, $\\sigma$ x 10": (folds, BLURRED[10.0]),
        "averaged samples, $\\sigma$ x 30": (folds, BLURRED[30.0]),
        "averaged seeds": (grouped, "none"),
    }
    for label, (of, name) in lines.items():
        each = [pixel_reliability(name, x, np.ones((1, len(x.iou)))) for _, m in of for x in m]
        pooled = Reliability(*(np.sum(x, 0)[0] for x in zip(*each, strict=True)))
        plot_reliability(left, pooled, label)
    left.set(title="Pixels", xlabel="probability of the label", ylabel="share of right labels")
    left.set(xlim=(0.48, 1.01), ylim=(0.45, 1.01))
    for name in (SAM, INSIDE, EXPECTED, PAIRS[10.0], AVERAGED):
        pooled = mask_reliability(name, folds)
        plot_reliability(right, Reliability(*(x[0] for x in pooled)), SHORT[name])
    right.set(title="Masks", xlabel="predicted IoU", ylabel="mean IoU")
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], "k:", lw=1)
        axes.legend(fontsize=8, frameon=False, loc="upper left")
        axes.grid(alpha=0.3)
    fig.suptitle(title, fontsize=11)
    fig.savefig(path, dpi=90)
    plt.close(fig)


def plot_reliability(axes: Any, sums: Reliability, label: str) -> None:
    """The line of one predictor; bins with less than 1 % of the items are left out."""
    bins = sums.weight > 0.01 * sums.weight.sum() if sums.weight.sum() < 1e4 else sums.weight > 0
    x, y = (of[bins] / sums.weight[bins] for of in (sums.predicted, sums.observed))
    axes.plot(x, y, "o-", ms=3, label=label)


def pyplot() -> Any:
    """Matplotlib without a window."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def table(found: dict[str, Any], kind: str) -> str:
    """A Markdown table: excess AURC by score and method."""
    names = list(dict.fromkeys(name for one in found.values() for name in one[kind]))
    lines = [
        f"| {kind} | {' | '.join(METHODS[m] for m in found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for name in names:
        cells = []
        for one in found.values():
            if name not in one[kind]:
                cells.append("")
                continue
            value, _, _ = one[kind][name]["excess AURC"]
            _, low, high = one[kind][name]["difference"]
            cells.append(f"{value:.3f} ({low:+.3f} ... {high:+.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, writes numbers and figures, and prints the two tables of areas."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=pathlib.Path, required=True, help="folder with the runs")
    add("--keep", type=pathlib.Path, required=True, help="folder for what they predict")
    add("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    add("--episodes", type=int, default=250, help="test episodes of each fold")
    add("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    add("--seeds", type=int, nargs="+", default=[321, 322, 323])
    args = parser.parse_args()
    numbers, ensembles, student = {}, {}, None
    for method in METHODS:
        folds: Folds = []
        for fold in args.folds:
            runs = [args.runs / f"shapes-fold{fold}-mask-{method}-seed{s}" for s in args.seeds]
            if missing := [str(run) for run in runs if not run.is_dir()]:
                raise UserError(
                    f"{missing[0]} is missing: make it with prosam reproduce --table methods "
                    f"--seeds {len(args.seeds)}, or pass other --folds and --seeds"
                )
            models = [kept(run, args.episodes, args.keep) for run in runs]
            with_seeds(models)
            folds.append((Drawn.of(models[0].target, len(models), fold), models))
        grouped: Folds = [(drawn.only(), [ensemble(models)]) for drawn, models in folds]
        one = folds[0][1][0]
        numbers[method] = measured(folds, list(one.levels), list(one.masks))
        ensembles[method] = measured(grouped, [ENTROPY], [EXPECTED])
        if method == "student_t":
            student = folds, grouped
    images, studies = args.out / "images", args.out / "studies"
    images.mkdir(parents=True, exist_ok=True)
    studies.mkdir(parents=True, exist_ok=True)
    assert student is not None
    title = f"ProSAM, Student-t, novel classes of {len(args.folds)} folds, {len(args.seeds)} seeds"
    draw_coverage(student[0], images / "uncertainty_coverage.png", title)
    draw_calibration(*student, images / "uncertainty_calibration.png", title)
    whole = {
        "episodes of each fold": args.episodes,
        "folds": args.folds,
        "seeds": args.seeds,
        "samples": SAMPLES,
        "value": "result, and the bounds of a 95 % interval over test pictures and seeds",
        "methods": numbers,
        "ensembles": ensembles,
    }
    (studies / "uncertainty.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(table(numbers, "pixels"), table(numbers, "masks"), sep="\n\n")


if __name__ == "__main__":
    main()
