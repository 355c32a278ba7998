"""How noisy the gradient of Eq. 10 is, and what a less noisy one costs.

    python -m studies.gradient_noise --run=runs/reproduce/small/shapes-fold0-mask-student_t-seed321

For each row of the table `noise` of `prosam reproduce`: the variance of the gradient of all learned
parameters over draws of the samples, with the batch and its dropout held; the time of one gradient,
in turns with the others; and the memory for intermediate results that the compiled function asks
for. Variance times time tells which way to spend time on samples is best: halving both K and the
variance's denominator changes nothing in it. Each is given over the recipe's (K = 2).

Beside them stands the variance between batches, which no way of sampling reduces. All of this at
the run's sigma and at ten times that. Writes `studies/gradient_noise.json` into `--out`.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from benchmarks import measure
from prosam_jax import model as models
from prosam_jax.atomic import replacing
from prosam_jax.comparison import beyond
from prosam_jax.comparison.paper import Row
from prosam_jax.config import Config, replaced
from prosam_jax.data import datasets
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.types import Features

SPREADS = (1.0, 10.0)
"""Factors on the run's sigma."""

ROWS = beyond.TABLES["noise"].rows

Gradient = Callable[[models.Parts, Features, Array, PRNGKeyArray, PRNGKeyArray], Float[Array, " p"]]


def settings(row: Row, cfg: Config) -> Config:
    """The settings of a run as a row of the table changes them."""
    return replaced(cfg, {"distribution.name": row.method, **dict(row.settings)})


def gradient_of(cfg: Config, graph: nnx.GraphDef, factor: float) -> Gradient:
    """A compiled function: parameters, a batch, dropout's key and the samples' -> the gradient.

    Args:
        cfg: The settings, of which the distribution is read.
        graph: The structure of the model.
        factor: On sigma.
    """

    @jax.jit
    def gradient(
        params: nnx.State,
        frozen: nnx.State,
        features: Features,
        target: Array,
        dropout_key: PRNGKeyArray,
        sample_key: PRNGKeyArray,
    ) -> Float[Array, " p"]:
        def loss(params: nnx.State) -> Float[Array, ""]:
            whole = nnx.merge(graph, params, frozen)
            whole.distribution = cfg.distribution
            posterior = whole.posterior(features, dropout_key)
            assert posterior.log_scale is not None
            wider = posterior._replace(log_scale=posterior.log_scale + jnp.log(factor))
            return whole.expected_loss(features.image_embeddings, wider, target, sample_key)[0]

        return jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0]

    return gradient


def variance(gradients: Float[np.ndarray, "k p"]) -> float:
    """Sum over the parameters of the variance among k gradients, unbiased."""
    return float(gradients.var(0, ddof=1).sum())


def over_recipe(one: Float[np.ndarray, " b"], recipe: Float[np.ndarray, " b"]) -> dict[str, float]:
    """Ratio of the means over b batches, with a 95 % bootstrap interval over batches."""
    drawn = np.random.default_rng(0).integers(len(one), size=(2_000, len(one)))
    low, high = np.quantile(one[drawn].mean(1) / recipe[drawn].mean(1), [0.025, 0.975])
    return {"value": float(one.mean() / recipe.mean()), "low": float(low), "high": float(high)}


def noise_at(
    cfg: Config, parts: models.Parts, batches: list[Any], factor: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Variance, time and memory of every row at one size of sigma."""
    variances: dict[str, list[float]] = {}
    means: list[np.ndarray] = []
    cases, memory = {}, {}
    for row in ROWS:
        name = ", ".join(row.labels)
        run = gradient_of(settings(row, cfg), parts.graph, factor)
        first = (parts.params, parts.frozen, *batches[0], jax.random.key(0))
        compiled = run.lower(*first).compile()
        if used := compiled.memory_analysis():
            memory[name] = used.temp_size_in_bytes
        cases[name] = functools.partial(_seconds, compiled, first)
        variances[name] = []
        for i, batch in enumerate(batches):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), args.draws)
            drawn = np.stack([compiled(parts.params, parts.frozen, *batch, key) for key in keys])
            variances[name].append(variance(drawn.astype(np.float64)))
            if row.labels == beyond.RECIPE:
                means.append(drawn.mean(0, dtype=np.float64))
        print(f"sigma x {factor:g}, {name}: {np.mean(variances[name]):.3g}", flush=True)
    seconds = measure.in_turns(cases, args.turns, lambda n: print(f"turn {n}", flush=True))
    recipe = ", ".join(beyond.RECIPE)
    samples = np.array(variances[recipe])
    # The mean of a batch's gradients still has the samples' noise, one k-th of it.
    between = variance(np.stack(means)) - samples.mean() / args.draws
    found = {}
    for name, of in variances.items():
        time = measure.ratio(seconds[name], seconds[recipe])
        ratio = over_recipe(np.array(of), samples)
        found[name] = {
            "variance": ratio,
            "time": time._asdict(),
            "variance_times_time": {x: y * time.median for x, y in ratio.items()},
            "seconds": measure.spread(seconds[name])._asdict(),
            "temporary_bytes": memory.get(name),
        }
    return {
        "variance_of_recipe": float(samples.mean()),
        "variance_between_batches": between,
        "rows": found,
    }


def _seconds(call: Callable[..., Array], arguments: tuple[Any, ...]) -> float:
    return measure.timed(lambda: jax.block_until_ready(call(*arguments))).seconds


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a Student-t run")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8, help="for each batch")
    parser.add_argument("--turns", type=int, default=7, help="of the timing")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    args = parser.parse_args()
    whole, cfg = models.load(args.run)
    if cfg.distribution.name != "student_t":
        raise UserError(f"--run={args.run} is a run of {cfg.distribution.name}: give a Student-t's")
    parts = models.split(whole)
    size = cfg.train.batch_size
    source = datasets.episodes(cfg.data, "train", seed=cfg.seed + 1_000, length=args.batches * size)
    encode, batches = jax.jit(whole.encode), []
    for i, episode in enumerate(make_loader(source, batch_size=size)):
        target, key = jnp.asarray(episode.target_mask), jax.random.key(i)
        batches.append((encode(episode), target, key))
    results = {
        "run": args.run.name,
        "batches": args.batches,
        "batch_size": size,
        "draws": args.draws,
        "turns": args.turns,
        "parameters": sum(x.size for x in jax.tree.leaves(parts.params)),
        "spreads": {
            f"{factor:g}": noise_at(cfg, parts, batches, factor, args) for factor in SPREADS
        },
    }
    with replacing(args.out / "studies" / "gradient_noise.json") as part:
        part.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
