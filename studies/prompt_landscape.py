"""Prompts and distributions of prompts learned for one picture and mask (section 5.3, Fig. 4).

    python -m studies.prompt_landscape [--pairs=20] [--sets=8] [--out=docs]
    python -m studies.prompt_landscape --image=cat.jpg --mask=cat.png --sets=200 [--sam=FILE]

For each picture-mask pair, gradient descent on SAM's frozen decoder learns sets of prompts from
random starts, and Student-t distributions over sets from others. Then samples of a distribution
are compared with the sets: by IoU and binary cross-entropy, by how near to the middle of the sets
the distribution lies, and by what the same noise does to the loss of either. Starts are drawn from
N(0, 25^2), as in the paper, and from N(0, 1).

A pair that is finished is kept in `--work`, so that the command goes on where it was stopped.
Writes `studies/landscape.json`, `images/landscape.png` (the first pair) and
`images/landscape_pairs.png`.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from prosam_jax import equations
from prosam_jax.atomic import replacing
from prosam_jax.config import PACKAGED, DataConfig, SAMSettings
from prosam_jax.data import datasets
from prosam_jax.data.annotation import given_annotation
from prosam_jax.data.transforms import resize_image
from prosam_jax.errors import UserError
from prosam_jax.evaluation import intervals
from prosam_jax.images import read
from prosam_jax.sam.build_sam import build_sam, embed
from prosam_jax.sam.model import Sam
from prosam_jax.types import Posterior
from prosam_jax.weights import files
from studies import landscape_figures
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
SEED = 321


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


# Which pairs, and which SAM.


def frozen_sam(file: str) -> tuple[Sam, str]:
    """The SAM of a weight file, or the packaged one, and its size's name.

    Raises:
        UserError: The file is missing, damaged or no SAM's.
    """
    if file == PACKAGED:
        return build_sam(SAMSettings(model="shapes", weights=PACKAGED)), "shapes"
    made_by = files.made_by("sam", "vit_h", file)
    held = files.metadata(file, made_by=made_by)
    if held.get("kind") != "sam":
        raise UserError(f"--sam={file} is not a SAM's weight file; make one with: {made_by}")
    return build_sam(SAMSettings.of(model=held["architecture"], weights=file)), held["architecture"]


Square = tuple[str, UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"]]
"""Name, picture and mask."""


def squares(args: argparse.Namespace) -> Iterator[Square]:
    """The user's pair, or test pairs of Shapes-5i: the folds take turns, and show novel classes."""
    if args.image is not None:
        pixels = read(args.image)
        mask = given_annotation(pixels.shape[:2], args.size, mask=args.mask)
        yield pathlib.Path(args.image).name, resize_image(pixels, args.size), mask
        return
    sources = [
        datasets.episodes(
            DataConfig.of(name="shapes", fold=fold, image_size=args.size),
            "test",
            seed=SEED,
            length=-(-args.pairs // 4),
        )
        for fold in range(4)
    ]
    for i in range(args.pairs):
        episode = sources[i % 4][i // 4]
        yield f"fold {i % 4}, test {i // 4}", episode.target_image, episode.target_mask


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", help="a picture of your own, instead of Shapes-5i's")
    parser.add_argument("--mask", help="its object, white on black, at the picture's size")
    parser.add_argument("--sam", default=PACKAGED, help="a SAM weight file of any size")
    parser.add_argument("--size", type=int, default=128, help="side of the loss's square, pixels")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--sets", type=int, default=8, help="sets of prompts for each pair")
    parser.add_argument("--first", type=int, default=200, help="of the first, from N(0, 25^2)")
    parser.add_argument("--starts", type=int, default=1, help="distributions for each pair")
    parser.add_argument("--first-starts", type=int, default=4, help="of the first")
    parser.add_argument("--prompts", type=int, default=10, help="prompts of a set")
    parser.add_argument("--most", type=int, default=300, help="losses of a descent, at most")
    parser.add_argument("--sweep", action="store_true", help="only try learning rates, on a pair")
    parser.add_argument("--minutes", type=float, help="begin no pair after so many")
    parser.add_argument("--work", type=pathlib.Path, default="runs/studies/landscape")
    parser.add_argument("--out", type=pathlib.Path, help="docs for Shapes-5i, else --work")
    return parser


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    if (args.image is None) != (args.mask is None):
        raise UserError("--image and --mask go together: give both, or neither for Shapes-5i")
    for name, least in (
        ("pairs", 1),
        ("sets", 2),
        ("first", 2),
        ("starts", 1),
        ("prompts", 1),
        ("most", 2),
    ):
        if getattr(args, name) < least:
            raise UserError(f"--{name}={getattr(args, name)} must be at least {least}")
    args.out = args.out or (pathlib.Path("docs") if args.image is None else args.work)
    return args


def run(args: argparse.Namespace) -> None:
    """Measures, and writes numbers and figures of the pairs that are finished.

    Raises:
        UserError: A picture, mask or weight file cannot be used, or an argument is too small.
    """
    args = _checked(args)
    sam, model = frozen_sam(args.sam)
    began, done = time.monotonic(), {}
    for i, (name, image, mask) in enumerate(squares(args)):
        how = Numbers(args.sets, args.sets, args.starts, args.prompts, args.most)
        if i == 0 and args.image is None:
            how = how._replace(sets=args.first, starts=args.first_starts)
        facts = [model, args.sam, args.size, how, RATES, i]
        content = repr(facts).encode() + image.tobytes() + mask.tobytes()
        file = args.work / f"{hashlib.sha256(content).hexdigest()[:16]}.npz"
        pair = Pair(embed(sam, jnp.asarray(image[None])), jnp.asarray(mask[None]))
        if args.sweep:
            rows = swept(sam, pair, args.prompts, args.most, args.sets)
            _write(args.out / "studies" / "landscape_rates.json", {"pair": name, "rates": rows})
            return
        if not file.is_file():
            if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
                break
            begin = time.monotonic()
            found = measured(sam, pair, how, SEED + i)
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part, part.open("wb") as out:
                np.savez(out, **found)
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        with np.load(file) as held:
            done[name] = (dict(held), image, mask)
    report(args, model, done)


def report(args: argparse.Namespace, model: str, done: Mapping[str, tuple[Any, ...]]) -> None:
    """Writes `landscape.json` and the figures, and prints the means."""
    pairs = {name: summary(found) for name, (found, *_) in done.items()}
    means = across(list(pairs.values()))
    names = ("size", "sets", "first", "starts", "first_starts", "prompts", "most")
    settings = {"sam": model, "rates": {f"{k:g}": x._asdict() for k, x in RATES.items()}}
    settings |= {name: getattr(args, name) for name in names}
    held = {"settings": settings, "pairs": len(pairs), "over pairs": means, "each pair": pairs}
    _write(args.out / "studies" / "landscape.json", held)
    images = args.out / "images"
    landscape_figures.one_pair(*next(iter(done.values())), images / "landscape.png")
    if len(pairs) > 1:
        landscape_figures.all_pairs(list(pairs.values()), means, images / "landscape_pairs.png")
    for name, x in means.items():
        print(f"{name:48} " + " ".join(f"{k} {v:.3f}" for k, v in x.items()))


def _write(path: pathlib.Path, held: Mapping[str, Any]) -> None:
    def rounded(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {k: rounded(v) for k, v in x.items()}
        if isinstance(x, list):
            return [rounded(v) for v in x]
        return float(f"{x:.4g}") if isinstance(x, float) else x

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(rounded(held), indent=1) + "\n")


def main() -> None:
    """Runs the study."""
    try:
        run(_parser().parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
