"""How flat the loss is around trained prompts, on novel classes, and whether flatter is better.

    python -m studies.flatness --runs=RUNS [--part proposition robustness curvature] [--out=docs]

Proposition 1 of the paper says that noise on the prompts penalises the Laplacian of the loss. The
first part measures both sides of it; the second how mIoU falls when prompts are perturbed; the
third the Laplacian itself, and whether it goes with IoU. RUNS is a folder of `prosam reproduce`.
Each part writes its numbers to OUT/studies/flatness.json, its figure to OUT/images, and prints
tables in Markdown.
"""

import argparse
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prosam_jax import curvature
from prosam_jax.atomic import replacing
from prosam_jax.console import note
from prosam_jax.model import ProSAM
from studies import bootstrap
from studies import flatness_figures as figures
from studies import flatness_measures as measures
from studies import flatness_statistics as statistics
from studies.flatness_runs import (
    CONTROL,
    METHODS,
    Case,
    Encoded,
    Fold,
    cases,
    encoded,
    finished,
    opened,
)

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 1.0, 1.5, 2.0)
AT = 0.2
"""Share of the noise whose gap stands beside the Laplacian."""

DRAWS = 1000
"""Of the bootstrap."""

TOP = 6
"""How many eigenvalues are shown."""

Measure = Callable[[Case, Any, jax.Array], Any]
PerFold = list[dict[str, np.ndarray]]


def over_runs(
    episodes: Encoded, models: Iterable[ProSAM], count: int, measure: Measure
) -> dict[str, np.ndarray]:
    """What is measured on the first episodes with each model: arrays (models, episodes, ...)."""
    found = []
    for model in models:
        one = [
            measure(case, sigma, jax.random.fold_in(jax.random.key(0), i))
            for i, (case, sigma) in enumerate(cases(model, episodes, count))
        ]
        found.append(measures.stacked(one))
    return {name: np.stack([x[name] for x in found]) for name in found[0]}


def gathered(
    folds: Sequence[Fold],
    episodes: Sequence[Encoded],
    count: int,
    measure: Callable[[str], Measure],
    *,
    seeds: int | None = None,
    control: bool = True,
) -> dict[str, PerFold]:
    """`over_runs` for every method: for each fold the arrays (seeds, episodes, ...) by name.

    Args:
        folds: Of `finished`.
        episodes: Of the same folds.
        count: How many episodes.
        measure: What is measured with a method.
        seeds: How many seeds of each fold; None for all.
        control: Whether to add a prompt encoder before training, of the first seed.
    """
    found: dict[str, PerFold] = {name: [] for name in (*METHODS, *[CONTROL] * control)}
    for fold, of_fold in zip(folds, episodes, strict=True):
        for name, values in found.items():
            start = time.monotonic()
            runs = fold.runs["vrp"][:1] if name == CONTROL else fold.runs[name][:seeds]
            models = (opened(run, trained=name != CONTROL) for run in runs)
            values.append(over_runs(of_fold, models, count, measure(name)))
            seconds = time.monotonic() - start
            note(f"fold {fold.number}, {name}: {len(runs)} runs, {seconds:.0f} s")
    return found


def drawn_again(
    folds: Sequence[Fold], episodes: Sequence[Encoded], count: int, *, seeds: bool = True
) -> list[bootstrap.Drawn]:
    """The bootstrap's draws of every fold, of pictures and, unless told otherwise, of seeds."""
    rng = np.random.default_rng(0)
    return [
        bootstrap.draw(of_fold.target[:count], len(fold.seeds) if seeds else 0, DRAWS, rng)
        for fold, of_fold in zip(folds, episodes, strict=True)
    ]


def column(found: PerFold, name: str) -> list[np.ndarray]:
    """One measure in all folds."""
    return [x[name] for x in found]


# Compiled once for all runs: what differs between these are the mean prompts.


@partial(jax.jit, static_argnames="products")
def flat(decoder: ProSAM, case: Case, key: jax.Array, products: int) -> dict[str, Any]:
    """`measures.sharpness` of an episode, its IoU, and the size and likeness of its prompts."""
    at, counts = jnp.zeros_like(case.mean), measures.counts_at(decoder, case)
    unit = case.mean / jnp.linalg.norm(case.mean, axis=-1, keepdims=True)
    return measures.sharpness(measures.loss_of(decoder, case), at, key, products) | {
        "iou": counts[0] / jnp.maximum(counts[:3].sum(), 1),
        "rms": case.rms,
        "alike": jnp.square(jnp.linalg.norm(unit.mean(0))),
    }


@jax.jit
def gap_at(decoder: ProSAM, case: Case, noise: jax.Array, shares: jax.Array) -> jax.Array:
    """`measures.gap_at` of an episode."""
    return measures.gap_at(measures.loss_of(decoder, case), noise, shares)


@jax.jit
def second_order(decoder: ProSAM, case: Case, noise: jax.Array) -> jax.Array:
    """`curvature.second_order` at an episode's mean prompts."""
    loss = measures.loss_of(decoder, case)
    return curvature.second_order(loss, jnp.zeros_like(case.mean), noise)


# Proposition 1.


def proposition(
    decoder: ProSAM,
    folds: Sequence[Fold],
    episodes: Sequence[Encoded],
    count: int,
    draws: int,
    products: int,
) -> dict[str, Any]:
    """Both sides of Proposition 1, over the first seed of every method and fold."""
    shares, one_share = jnp.array(SHARES), jnp.ones(1)

    def measure(name: str) -> Measure:
        def one(case: Case, sigma: Any, key: jax.Array) -> dict[str, Any]:
            gap, second = partial(gap_at, decoder, case), partial(second_order, decoder, case)
            found = flat(decoder, case, jax.random.fold_in(key, 1), products)
            found |= measures.gaps_and_second(gap, second, key, case.mean, shares, draws)
            if sigma is not None:
                noise = curvature.draw_displacements(
                    key, sigma, draws, sampler=name, nu=measures.NU
                )
                found["own_gap"], found["own_second"] = gap(noise, one_share), second(noise).mean()
                found["own_size"] = jnp.sqrt(jnp.square(sigma).mean())
            return found

        return one

    found = gathered(folds, episodes, count, measure, seeds=1, control=False)
    drawn = drawn_again(folds, episodes, count, seeds=False)
    # All methods together: (methods, episodes, ...) in every fold.
    pooled = [
        {name: np.concatenate([found[m][i][name] for m in METHODS]) for name in found["vrp"][i]}
        for i in range(len(folds))
    ]
    gap, second = column(pooled, "gap"), column(pooled, "second")
    trace, square = column(pooled, "laplacian"), np.square(SHARES)
    expected = [x[..., None] * square / 2 for x in trace]
    same_draws = [x[..., None] * square for x in second]
    mean_gap, mean_expected = statistics.mean(gap, drawn), statistics.mean(expected, drawn)
    off = statistics.relative_error(gap, same_draws, drawn)
    ratio = statistics.signed_ratio(gap, same_draws, trace, drawn)
    other = [np.broadcast_to(x[:, :, None], g.shape) for x, g in zip(expected, gap, strict=True)]
    other_draws = statistics.signed_ratio(gap, other, trace, drawn)
    loss = statistics.mean(column(pooled, "loss"), drawn)
    held: dict[str, Any] = {
        "episodes": count,
        "folds": [x.number for x in folds],
        "draws": draws,
        "shares": SHARES,
        "loss": statistics.stated(loss),
        "negative": statistics.stated(statistics.mean([x < 0 for x in trace], drawn)),
        "predicted": statistics.each(mean_expected),
    }
    for i, noise in enumerate(measures.NOISES):
        held[noise] = {
            "gap": statistics.each(mean_gap[:, i]),
            "ratio": statistics.each(ratio[:, i]),
            "ratio_to_laplacian": statistics.each(other_draws[:, i]),
            "relative_error": statistics.each(off[:, i]),
        }
    for sign, chosen in (
        ("positive", [x > 0 for x in trace]),
        ("negative", [x < 0 for x in trace]),
    ):
        of_gap = statistics.split_mean(gap, chosen, drawn)
        held[f"where_{sign}"] = {
            "predicted": statistics.each(statistics.split_mean(expected, chosen, drawn)),
            **{x: statistics.each(of_gap[:, i]) for i, x in enumerate(measures.NOISES)},
        }
    held["trained_noise"] = {}
    for name in METHODS:
        if "own_gap" in found[name][0]:
            of = {x: column(found[name], x) for x in found[name][0]}
            own = [x[..., 0] for x in of["own_gap"]]
            mean = {
                "size": statistics.mean(of["own_size"], drawn),
                "gap": statistics.mean(own, drawn),
                "loss": statistics.mean(of["loss"], drawn),
                "ratio": statistics.signed_ratio(own, of["own_second"], of["laplacian"], drawn),
            }
            mean["of_loss"] = mean["gap"] / mean["loss"]
            held["trained_noise"][name] = {x: statistics.stated(v) for x, v in mean.items()}
    return held


@jax.jit
def smooth_gap(decoder: ProSAM, case: Case, noise: jax.Array, shares: jax.Array) -> jax.Array:
    """`measures.smooth_gap` of an episode."""
    return measures.smooth_gap(measures.loss_of(decoder, case), noise, shares)


KINK_SHARES = (0.02, 0.1, 0.4)


def kinks(
    decoder: ProSAM,
    folds: Sequence[Fold],
    episodes: Sequence[Encoded],
    count: int,
    draws: int,
    products: int,
) -> dict[str, Any]:
    """How much of the gap is due to the decoder's ReLUs: Student-t, first seed of every fold."""
    shares = jnp.array(KINK_SHARES)

    def one(case: Case, _: Any, key: jax.Array) -> dict[str, Any]:
        noise = measures.unit_noise(key, case.mean, draws, "gaussian")
        return {
            "laplacian": flat(decoder, case, jax.random.fold_in(key, 1), products)["laplacian"],
            "gap": gap_at(decoder, case, noise, shares),
            "smooth": smooth_gap(decoder, case, noise, shares),
            "second": second_order(decoder, case, noise).mean(),
        }

    found = [
        over_runs(of_fold, [opened(fold.runs["student_t"][0])], count, one)
        for fold, of_fold in zip(folds, episodes, strict=True)
    ]
    drawn = drawn_again(folds, episodes, count, seeds=False)
    sign, gap, smooth = (column(found, x) for x in ("laplacian", "gap", "smooth"))
    second = [x[..., None] * np.square(KINK_SHARES) for x in column(found, "second")]
    of_gap = {
        "gap": statistics.signed_ratio(gap, second, sign, drawn),
        "smooth": statistics.signed_ratio(smooth, second, sign, drawn),
        "error_of_second": statistics.relative_error(gap, second, drawn),
        "error_of_smooth": statistics.relative_error(gap, smooth, drawn),
    }
    held = {"episodes": count, "draws": draws, "shares": KINK_SHARES}
    return held | {name: statistics.each(of) for name, of in of_gap.items()}


# Perturbed prompts.


def robustness(
    decoder: ProSAM, folds: Sequence[Fold], episodes: Sequence[Encoded], count: int, draws: int
) -> dict[str, Any]:
    """Novel classes' mIoU against the size of a perturbation, for all runs."""
    levels = jnp.array(LEVELS)

    @jax.jit
    def counted(decoder, case, key):
        return {"counts": measures.robustness(decoder, case, key, levels, draws)}

    found = gathered(
        folds, episodes, count, lambda _: lambda case, _, key: counted(decoder, case, key)
    )
    drawn = drawn_again(folds, episodes, count)
    classes = [x.class_id[:count] for x in episodes]
    held: dict[str, Any] = {
        "episodes": count,
        "runs": {fold.number: fold.seeds for fold in folds},
        "draws": draws,
        "levels": LEVELS,
    }
    for p, pattern in enumerate(measures.PATTERNS):
        miou = {
            name: 100 * statistics.miou([x["counts"][:, :, p] for x in of], classes, drawn)
            for name, of in found.items()
        }
        held[pattern] = {}
        for name, of in miou.items():
            held[pattern][name] = {
                "miou": statistics.each(of),
                "to_vrp": statistics.each(of - miou["vrp"]),
                **{
                    f"fall_to_{base}": statistics.each(
                        of - of[:, :1] - miou[base] + miou[base][:, :1]
                    )
                    for base in ("vrp", "vrp_2linear")
                },
            }
    return held


# Curvature, and whether flatter is better.

FLAT = ("laplacian", "gap", "slope", "loss")
"""Whose rank correlation with IoU is taken; the loss is the control, which has to go with it."""


def curvatures(
    decoder: ProSAM,
    folds: Sequence[Fold],
    episodes: Sequence[Encoded],
    count: int,
    draws: int,
    products: int,
) -> dict[str, Any]:
    """Curvature at the mean prompts of all runs, and its relation to IoU."""

    def one(case: Case, _: Any, key: jax.Array) -> dict[str, Any]:
        noise = measures.unit_noise(key, case.mean, draws, "gaussian")
        gap = gap_at(decoder, case, noise, jnp.full(1, AT))[0]
        return flat(decoder, case, jax.random.fold_in(key, 1), products) | {"gap": gap}

    found = gathered(folds, episodes, count, lambda _: one)
    drawn = drawn_again(folds, episodes, count)
    held: dict[str, Any] = {
        "episodes": count,
        "runs": {fold.number: fold.seeds for fold in folds},
        "products": products,
        "at": AT,
        "methods": {},
    }
    of_vrp = statistics.mean(column(found["vrp"], "laplacian"), drawn)
    for name, of in found.items():
        trace, error = column(of, "laplacian"), column(of, "error")
        sure = [x + 2 * e < 0 for x, e in zip(trace, error, strict=True)]
        held["methods"][name] = {
            **{x: statistics.stated(statistics.mean(column(of, x), drawn)) for x in of[0]},
            "laplacian_to_vrp": statistics.stated(statistics.mean(trace, drawn) - of_vrp),
            "median": statistics.stated(statistics.median(trace, drawn)),
            "negative": statistics.stated(statistics.mean([x < 0 for x in trace], drawn)),
            "surely_negative": statistics.stated(statistics.mean(sure, drawn)),
            "quantiles": np.quantile(
                np.concatenate([x.ravel() for x in trace]), np.linspace(0, 1, 41)
            )
            .round(5)
            .tolist(),
        }
    held["relation"] = _relation(found, drawn)
    held["of_runs"] = {
        name: [
            [float(f"{x.mean():.4g}") for x in (of["laplacian"][s], of["iou"][s])]
            for of in found[name]
            for s in range(len(of["iou"]))
        ]
        for name in METHODS
    }
    return held


def _relation(found: dict[str, PerFold], drawn: Sequence[bootstrap.Drawn]) -> dict[str, Any]:
    """Rank correlation of each of `FLAT` with IoU."""
    held: dict[str, Any] = {}
    for name in FLAT:
        within = {
            m: statistics.within_runs(column(found[m], name), column(found[m], "iou"), drawn)
            for m in METHODS
        }
        x, iou = (
            [np.stack([found[m][i][of] for m in METHODS]) for i in range(len(drawn))]
            for of in (name, "iou")
        )
        held[name] = {
            **{m: statistics.stated(of) for m, of in within.items()},
            "within": statistics.stated(np.mean([*within.values()], axis=0)),
            "across": statistics.stated(statistics.across_runs(x, iou, drawn)),
            "means": statistics.stated(statistics.of_means(x, iou, drawn)),
        }
    return held


def spectra(
    decoder: ProSAM,
    fold: Fold,
    episodes: Encoded,
    count: int,
    draws: int,
    products: int,
    shown: int,
) -> dict[str, Any]:
    """Top eigenvalues and the errors of two estimates of the Laplacian: one fold, one seed.

    Args:
        decoder: The model whose decoder is used.
        fold: The fold.
        episodes: Its episodes.
        count: Episodes on which the estimates are compared.
        draws: Products with the Hessian that are compiled together.
        products: Products with the Hessian of either estimate.
        shown: Episodes whose eigenvalues are computed.
    """

    @jax.jit
    def product(decoder, case, v):
        return curvature.hessian_vector(measures.loss_of(decoder, case), jnp.zeros_like(v), v)

    def traces(case: Case, _: Any, key: jax.Array) -> dict[str, Any]:
        # Vectors by the number that `second_order` was compiled for.
        signs = jax.random.rademacher(key, (-(-products // draws), draws, *case.mean.shape), float)
        halves = jnp.concatenate([second_order(decoder, case, x) for x in signs])[:products]
        found = flat(decoder, case, jax.random.fold_in(key, 1), products)
        return {
            "hutchinson": jnp.stack(curvature.estimate(2 * halves)),
            "hutch_plus_plus": jnp.stack([found["laplacian"], found["error"]]),
        }

    held: dict[str, Any] = {"fold": fold.number, "seed": fold.seeds[0], "products": products}
    held |= {"episodes": count, "eigenvalues": {}, "exact": {}}
    errors = []
    for name in METHODS:
        model = opened(fold.runs[name][0])
        found = over_runs(episodes, [model], count, traces)
        errors.append(np.stack([found[x][0, :, 1] for x in found], axis=1))
        few = [case for case, _ in cases(model, episodes, shown)]
        held["eigenvalues"][name] = [
            [float(f"{x:.3g}") for x in of]
            for of in (
                curvature.eigenvalues(partial(product, decoder, case), case.mean, TOP)
                for case in few
            )
        ]
        if name == "student_t":
            for method, of in found.items():
                held["exact"][method] = [float(f"{x:.4g}") for x in of[0, 0]]
            second = partial(second_order, decoder, few[0])
            trace = measures.laplacian_of(second, few[0].mean, draws)
            held["exact"]["laplacian"] = float(f"{trace:.4g}")
    # (methods, episodes, 2): Hutchinson's error over that of Hutch++, episode by episode.
    both = [np.stack(errors)]
    drawn = drawn_again([fold], [episodes], count, seeds=False)
    for i, name in enumerate(("hutchinson", "hutch_plus_plus")):
        held[f"error_{name}"] = statistics.stated(
            statistics.median([x[..., i] for x in both], drawn)
        )
    ratio = [x[..., 0] / x[..., 1] for x in both]
    held["error_ratio"] = statistics.stated(statistics.median(ratio, drawn))
    return held


def compact(held: dict[str, Any]) -> str:
    """JSON with a line for each list of numbers."""
    whole = json.dumps(held, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda x: re.sub(r"\s+", " ", x[0]), whole)


PARTS = ("proposition", "kinks", "robustness", "curvature", "spectra")


def main() -> None:
    """Measures the parts asked for, and draws and prints all that OUT has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="Folder of the runs.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    parser.add_argument("--part", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--episodes", type=int, default=100, help="Of every run, for mIoU.")
    parser.add_argument("--few", type=int, default=16, help="Of every run, for the rest.")
    parser.add_argument("--draws", type=int, default=1, help="Perturbations of an episode.")
    parser.add_argument("--pairs", type=int, default=16, help="Pairs of noise of a gap.")
    parser.add_argument("--products", type=int, default=24, help="With the Hessian, of a trace.")
    parser.add_argument("--shown", type=int, default=2, help="Episodes with eigenvalues.")
    args = parser.parse_args()
    path = args.out / "studies" / "flatness.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    if args.part:
        folds = finished(args.runs)
        decoder = opened(folds[0].runs["vrp"][0])
        most = args.episodes if "robustness" in args.part else args.few
        episodes = [encoded(decoder, fold.runs["vrp"][0].cfg, most) for fold in folds]
        few = (args.few, args.pairs, args.products)
        made = {
            "proposition": lambda: proposition(decoder, folds, episodes, *few),
            "kinks": lambda: kinks(decoder, folds, episodes, args.few // 2, *few[1:]),
            "robustness": lambda: robustness(decoder, folds, episodes, args.episodes, args.draws),
            "curvature": lambda: curvatures(decoder, folds, episodes, *few),
            "spectra": lambda: spectra(decoder, folds[0], episodes[0], *few, args.shown),
        }
        for part in args.part:
            start = time.monotonic()
            held[part] = json.loads(json.dumps(made[part]()))
            held[part]["seconds"] = round(time.monotonic() - start)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_text(compact(held) + "\n")
    figures.draw(held, args.out / "images")
    print(figures.tables(held))


if __name__ == "__main__":
    main()
