"""What `prompt_landscape` learns for one picture-mask pair, and the numbers made of it."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from prosam_jax import equations
from prosam_jax.evaluation import intervals
from prosam_jax.sam.model import Sam
from prosam_jax.types import Posterior
from studies.descent import Found, Pair, Rule, descend, logits, loss_of_distribution, loss_of_set

PAPERS = 25.0
RATES = {PAPERS: Posterior(1.0, 0.03), 1.0: Posterior(0.1, 0.1)}
"""Standard deviation of the starts, and the learning rates from there of a set or a distribution's
mean (`--sweep` shows others), and of its log-scale, with which sigma explodes if it is large."""

SWEPT = (1e-4, 1e-2, 0.1, 0.3, 1.0, 3.0)
SAMPLES, NU = 10, 5.0  # K and nu of the paper
JUDGED = 100  # samples of a learned distribution
SHAKEN = 5  # draws of noise for each set
GROUP = 5  # samples of a distribution that are decoded at once
SEED = 321  # of the bootstrap


class Scores(NamedTuple):
    """Of n sets of prompts on their pair."""

    iou: Float[Array, " n"]
    bce: Float[Array, " n"]
    loss: Float[Array, " n"]


# Compiled once for all pairs of one size.


@functools.partial(jax.jit, static_argnames=("rule", "lanes"))
def learn_sets(
    sam: Sam, pair: Pair, starts: Float[Array, "n q c"], rule: Rule, lanes: int
) -> Found:
    """Sets of prompts from their starts."""
    keys = jax.random.split(jax.random.key(0), len(starts))  # which the loss does not read
    return descend(loss_of_set(sam, pair), starts, keys, rule, lanes=lanes)


@functools.partial(jax.jit, static_argnames="rule")
def learn_distributions(
    sam: Sam, pair: Pair, starts: Posterior, keys: PRNGKeyArray, rule: Rule
) -> Found:
    """Distributions, arrays of (n, 1, q, c), from their starts."""
    loss = loss_of_distribution(sam, pair, SAMPLES, NU, GROUP)
    return descend(loss, starts, keys, rule, lanes=1)


@jax.jit
def score(sam: Sam, pair: Pair, sets: Float[Array, "n q c"]) -> Scores:
    """IoU, binary cross-entropy and loss of each set."""

    def one(prompts: Float[Array, "q c"]) -> Scores:
        found = logits(sam, pair, prompts)
        mask = equations.foreground(found)
        iou = (mask & pair.mask).sum() / jnp.maximum((mask | pair.mask).sum(), 1)
        return Scores(
            iou, equations.bce_loss(found, pair.mask), equations.mask_loss(found, pair.mask)
        )

    return jax.lax.map(one, sets, batch_size=4)


def draw(posterior: Posterior, key: PRNGKeyArray, k: int) -> Float[Array, "k q c"]:
    """Samples of one distribution, arrays of (1, q, c)."""
    return equations.sample_prompts(key, posterior, k, sampler="student_t", nu=NU)[:, 0]


# What is compared.


def beaten(values: Float[np.ndarray, " k"], others: Float[np.ndarray, " n"]) -> float:
    """Share of pairs of one of each in which that of `values` is greater; equal ones count half."""
    above = values[:, None] - others[None]
    return float(((above > 0) + (above == 0) / 2).mean())


def beyond_quartile(values: Float[np.ndarray, " k"], others: Float[np.ndarray, " n"]) -> float:
    """Share of `values` that are greater than three quarters of the others."""
    return float((values > np.quantile(others, 0.75)).mean())


def centrality(sets: Float[np.ndarray, "n d"], point: Float[np.ndarray, " d"]) -> float:
    """How far a point is from the mean of the sets, over what a set is from that of the others.

    Below 1 the point is nearer to the middle than the sets are; another set would have about 1.
    """
    n, mean = len(sets), sets.mean(0)
    own = np.linalg.norm(sets - mean, axis=1) * n / (n - 1)
    return float(np.linalg.norm(point - mean) / np.median(own))


class Numbers(NamedTuple):
    """How much is learned for a pair.

    Attributes:
        sets: Sets of prompts from N(0, 25^2).
        others: Sets from N(0, 1).
        starts: Distributions, from starts of either kind.
        prompts: Prompts of a set.
        most: Losses of a descent, at most.
    """

    sets: int
    others: int
    starts: int
    prompts: int
    most: int


def measured(sam: Sam, pair: Pair, how: Numbers, seed: int) -> dict[str, np.ndarray]:
    """Everything about one pair, by names such as "25/sets/iou": arrays with a leading n or k."""
    shape, n_starts, found = (how.prompts, pair.embedding.shape[-1]), how.starts, {}
    for sd, rates in RATES.items():
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), int(sd)), 5)
        rule = Rule(rate=rates, most=how.most)
        n_sets = how.sets if sd == PAPERS else how.others
        starts = sd * jax.random.normal(keys[0], (n_sets, *shape))
        sets = learn_sets(sam, pair, starts, rule._replace(rate=rates.mean), 4)
        means = sd * jax.random.normal(keys[1], (n_starts, 1, *shape))
        # The scale begins at 1, as the paper's heads do.
        posterior = Posterior(means, jnp.zeros_like(means))
        learned = learn_distributions(
            sam, pair, posterior, jax.random.split(keys[2], n_starts), rule
        )
        each = [jax.tree.map(lambda x, i=i: x[i], learned.at) for i in range(n_starts)]
        samples = jnp.stack([draw(x, keys[3], JUDGED) for x in each])
        noise = jnp.stack(
            [draw(x._replace(mean=jnp.zeros_like(x.mean)), keys[4], SHAKEN) for x in each]
        )
        now, of_means = score(sam, pair, sets.at), score(sam, pair, learned.at.mean[:, 0])
        shaken = sets.at[:, None] + noise[0][None]
        found |= {
            f"{sd:g}/{name}": np.asarray(x)
            for name, x in {
                **_named("starts", score(sam, pair, starts)),
                **_named("sets", now),
                "sets/losses": sets.losses,
                "sets/over": sets.over,
                "sets/at": sets.at,
                "sets/moved": _norm(sets.at - starts) / _norm(starts),
                **_named("shaken sets", score(sam, pair, shaken.reshape(-1, *shape))),
                **evenly_shaken(
                    sam,
                    pair,
                    sets.at,
                    each[0].mean[0],
                    float(jnp.exp(each[0].log_scale).mean()),
                    keys[4],
                ),
                **_named("samples", score(sam, pair, samples.reshape(-1, *shape))),
                **_named("means", of_means),
                "samples/losses": learned.losses,
                "samples/over": learned.over,
                "samples/at": samples[0],
                "means/at": learned.at.mean[:, 0],
                "means/sigma": jnp.exp(learned.at.log_scale).mean((1, 2, 3)),
                "means/to_norm": (
                    jnp.linalg.norm(jnp.exp(learned.at.log_scale), axis=-1)
                    / jnp.linalg.norm(learned.at.mean, axis=-1)
                ).mean((1, 2)),
            }.items()
        }
    return found


def evenly_shaken(
    sam: Sam,
    pair: Pair,
    sets: Float[Array, "n q c"],
    mean: Float[Array, "q c"],
    sigma: float,
    key: PRNGKeyArray,
) -> dict[str, Array]:
    """Scores of the sets and of a mean with noise of one sigma for all coordinates.

    A learned sigma fits the place where it was learned, coordinate by coordinate; this one does
    not.
    """
    level = Posterior(jnp.zeros_like(mean)[None], jnp.full_like(mean, jnp.log(sigma))[None])
    noise = draw(level, jax.random.fold_in(key, 1), SHAKEN)
    moved = (sets[:, None] + noise[None]).reshape(-1, *mean.shape)
    return {
        **_named("evenly shaken sets", score(sam, pair, moved)),
        **_named("evenly shaken mean", score(sam, pair, mean[None] + noise)),
    }


def _named(name: str, scores: Scores) -> dict[str, Array]:
    return {f"{name}/{field}": x for field, x in scores._asdict().items()}


def _norm(x: Float[Array, "n q c"]) -> Float[Array, " n"]:
    return jnp.linalg.norm(x.reshape(len(x), -1), axis=1)


def summary(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The numbers of one pair; samples of all starts of a distribution together."""
    numbers = {}
    for sd in RATES:
        own = {k.removeprefix(f"{sd:g}/"): x for k, x in found.items() if k.startswith(f"{sd:g}/")}
        at, means = own["sets/at"], own["means/at"]
        flat = at.reshape(len(at), -1).astype(np.float64)
        central = [centrality(flat, x.ravel().astype(np.float64)) for x in means]
        of_sets = own["shaken sets/loss"].reshape(len(at), -1).mean(1) - own["sets/loss"]
        even = own["evenly shaken sets/loss"].reshape(len(at), -1).mean(1) - own["sets/loss"]
        first = own["samples/loss"].reshape(len(means), -1)[0].mean()
        numbers |= {
            f"{sd:g}: {name}": float(x)
            for name, x in {
                "IoU of the starts": np.median(own["starts/iou"]),
                "IoU of the sets": np.median(own["sets/iou"]),
                # By its loss; ten sets take as many decodings as a distribution.
                "IoU of the best set": own["sets/iou"][own["sets/loss"].argmin()],
                "IoU of the samples": np.median(own["samples/iou"]),
                "IoU of the mean prompts": own["means/iou"].mean(),
                "BCE of the sets": np.median(own["sets/bce"]),
                "BCE of the samples": np.median(own["samples/bce"]),
                "losses of a set": own["sets/losses"].mean(),
                "losses of a distribution": own["samples/losses"].mean(),
                "stopped by the rule": np.concatenate(
                    [own["sets/over"], own["samples/over"]]
                ).mean(),
                "sets moved, of their norm": own["sets/moved"].mean(),
                "sigma": own["means/sigma"].mean(),
                "sigma's norm over the means'": own["means/to_norm"].mean(),
                "centrality": np.mean(central),
                "loss that the noise adds to the sets": np.median(of_sets),
                "loss that the noise adds to the mean": first - own["means/loss"][0],
                "loss that even noise adds to the sets": np.median(even),
                "loss that even noise adds to the mean": (
                    own["evenly shaken mean/loss"].mean() - own["means/loss"][0]
                ),
                "samples above 3/4 of the sets": beyond_quartile(
                    own["samples/iou"], own["sets/iou"]
                ),
            }.items()
        }
    for of, over in ((a, b) for a in RATES for b in RATES):
        ious = found[f"{of:g}/samples/iou"], found[f"{over:g}/sets/iou"]
        bces = -found[f"{of:g}/samples/bce"], -found[f"{over:g}/sets/bce"]
        numbers[f"samples from {of:g} beat sets from {over:g}, IoU"] = beaten(*ious)
        numbers[f"samples from {of:g} beat sets from {over:g}, BCE"] = beaten(*bces)
    return numbers


def across(pairs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each number the mean over the pairs, its interval, and its spread over the pairs.

    The interval is the bootstrap's over pairs (`intervals`), or absent for a single pair.
    """
    found = {}
    rng = np.random.default_rng(SEED)
    times = rng.integers(0, len(pairs), (intervals.DRAWS, len(pairs)))
    for name in pairs[0]:
        values = np.array([pair[name] for pair in pairs])
        found[name] = {"mean": float(values.mean())}
        if len(pairs) > 1:
            low, high = intervals.interval(values[times].mean(1))
            q = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
            spread = zip(("least", "q1", "median", "q3", "greatest"), q, strict=True)
            found[name] |= {"low": low, "high": high, **dict(spread)}
    return found


def swept(sam: Sam, pair: Pair, prompts: int, most: int, n: int) -> list[dict[str, float]]:
    """What n sets of prompts become with each learning rate, from both kinds of starts."""
    rows = []
    for sd in RATES:
        shape = (n, prompts, pair.embedding.shape[-1])
        starts = sd * jax.random.normal(jax.random.key(0), shape)
        for rate in SWEPT:
            found = learn_sets(sam, pair, starts, Rule(rate=rate, most=most), 4)
            scores = score(sam, pair, found.at)
            moved = _norm(found.at - starts) / _norm(starts)
            numbers = {
                "loss": scores.loss,
                "IoU": scores.iou,
                "losses": found.losses,
                "over": found.over,
                "moved": moved,
            }
            row = {name: float(x.mean()) for name, x in numbers.items()}
            rows.append({"start": sd, "rate": rate, **row})
            print(" ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()), flush=True)
    return rows
