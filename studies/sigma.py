"""What moves sigma in training: its gradient, and what the prompts' norm has to do with it.

    python -m studies.sigma --runs=runs/reproduce/small [--episodes=40] [--out=docs]

For trained Student-t runs, and for prompt encoders before training, on episodes of base classes
(what training sees):

* the expected loss of Eq. 10 against the size of the noise, and its derivative with respect to log
  sigma, measured and in closed form: by Proposition 1 it is nu / (nu - 2) * sum_i sigma_i^2 H_ii,
  with H the Hessian of the loss at the mean;
* the loss and the IoU when the mean prompts are multiplied by a number, and the derivative of the
  expected loss with respect to the log of that number, which an absolute sigma adds to training.

Writes `studies/sigma.json` and `images/sigma.png` into `--out`. The figure also has the size of
sigma over the steps of all runs in the folder that have one, of fold 0 and the first seed; with
`--redraw` only these are read again.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

from prosam_jax import curvature, equations, sampling
from prosam_jax.atomic import replacing
from prosam_jax.config import Config
from prosam_jax.data import datasets
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.model import ProSAM, build, load
from prosam_jax.report import curves
from prosam_jax.types import Episode

RELATIVE = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Noise of one size for all coordinates, as a share of each prompt's root mean square."""
OWN = (1.0, 3.0, 10.0, 30.0)
"""Factors on the sigma that a model predicts."""
STRETCHED = (0.1, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0, 10.0)
"""Factors on the mean prompts."""


class Slopes(NamedTuple):
    """The expected loss under noise, and its derivatives.

    Attributes:
        loss: E L(mu + sigma noise).
        of_scale: Its derivative with respect to the log of a factor on sigma.
        of_norm: Its derivative with respect to the log of a factor on mu.
    """

    loss: Float[Array, "*n"]
    of_scale: Float[Array, "*n"]
    of_norm: Float[Array, "*n"]


def slopes(
    loss: curvature.Loss,
    mean: Float[Array, "q n"],
    displacements: Float[Array, "k q n"],
) -> Slopes:
    """Means over the displacements x of Eq. 6-7 and over -x, from the gradient g at mu + x.

    The derivatives are E <g, x> and E <g, mu>, so their sum is E <g, p>, which is 0 for a loss that
    does not depend on the length of p.
    """

    def one(x: Float[Array, "q n"]) -> Slopes:
        value, gradient = jax.value_and_grad(loss)(mean + x)
        return Slopes(value, jnp.vdot(gradient, x), jnp.vdot(gradient, mean))

    both = jnp.concatenate([displacements, -displacements])
    return jax.tree.map(jnp.mean, jax.lax.map(one, both))


def probe(
    model: ProSAM, episode: Episode, key: PRNGKeyArray, *, pairs: int, products: int
) -> dict[str, Any]:
    """All that is measured, for each episode of a batch; the leading axis is the episodes'."""
    cfg = model.distribution
    features = model.encode(episode)
    posterior = model.posterior(features)
    assert posterior.log_scale is not None, "a deterministic model has no sigma"
    truth = jnp.asarray(episode.target_mask)

    def one(of: tuple[Array, ...]) -> dict[str, Any]:
        embedding, mean, sigma, mask, key = of
        noise_key, sign_key = jax.random.split(key)

        def logits(prompts: Float[Array, "q n"]) -> Float[Array, "1 h w"]:
            height, width = mask.shape
            return model.decode(embedding[None], prompts[None], (height, width))

        def loss(prompts: Float[Array, "q n"]) -> Float[Array, ""]:
            return equations.mask_loss(logits(prompts), mask[None])

        def drawn(sigma: Float[Array, "q n"]) -> Float[Array, "k q n"]:
            return curvature.draw_displacements(
                noise_key, sigma, pairs, sampler=cfg.name, nu=cfg.nu
            )

        rms = sampling.root_mean_square(mean)
        own, flat = drawn(sigma), drawn(jnp.broadcast_to(rms, mean.shape))
        signs = jax.random.rademacher(sign_key, (products, *mean.shape), mean.dtype)
        halves = curvature.second_order(loss, mean, sigma[None] * signs)
        variance = curvature.noise_variance(cfg.name, cfg.nu, mean.shape[-1])
        gradient = jax.grad(loss)(mean)
        along = (gradient * mean).sum(-1) / (jnp.linalg.norm(mean, axis=-1) + 1e-12)

        def stretched(c: Array) -> tuple[Array, Array]:
            found = logits(c * mean)
            predicted = equations.foreground(found[0])
            union = jnp.maximum((predicted | mask).sum(), 1)
            return equations.mask_loss(found, mask[None]), (predicted & mask).sum() / union

        return {
            "relative": jax.lax.map(lambda r: slopes(loss, mean, r * flat), jnp.asarray(RELATIVE)),
            "own": jax.lax.map(lambda r: slopes(loss, mean, r * own), jnp.asarray(OWN)),
            "closed": 2 * variance * halves.mean(),
            "same_draws": 2 * curvature.second_order(loss, mean, own).mean(),
            "stretched": jax.lax.map(stretched, jnp.asarray(STRETCHED)),
            "rms": rms.mean(),
            "share": (jnp.linalg.norm(sigma, axis=-1) / jnp.linalg.norm(mean, axis=-1)).mean(),
            "radial": jnp.square(along).sum() / jnp.square(gradient).sum(),
        }

    keys = jax.random.split(key, len(truth))
    sigma = equations.scale(posterior.log_scale)
    return jax.lax.map(one, (features.image_embeddings, posterior.mean, sigma, truth, keys))


_probe = jax.jit(probe, static_argnames=("pairs", "products"))


def finished(folder: pathlib.Path) -> list[pathlib.Path]:
    """The Student-t runs of `prosam reproduce` with the recipe's settings and masks.

    Raises:
        UserError: There is none.
    """
    found = sorted(x.parent for x in folder.glob("*-mask-student_t-seed*/results.json"))
    if not found:
        raise UserError(
            f"--runs={folder} has no finished run *-mask-student_t-seed*: run "
            f"prosam reproduce --table 4 --workdir {folder}"
        )
    return found


def measured(model: ProSAM, cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """`probe` on base-class episodes that training did not draw, one after the other."""
    source = datasets.episodes(cfg.data, "train", seed=cfg.seed + 1_000, length=args.episodes)
    at_once = next(n for n in (4, 2, 1) if args.episodes % n == 0)
    several = []
    for i, episode in enumerate(make_loader(source, batch_size=at_once)):
        key = jax.random.fold_in(jax.random.key(0), i)
        found = _probe(model, episode, key, pairs=args.pairs, products=args.products)
        several.append(jax.device_get(found))
    return jax.tree.map(lambda *x: np.concatenate(x), *several)


def mean_of(x: Float[np.ndarray, "n *k"]) -> dict[str, Any]:
    """Mean over episodes, its standard error, and the share above 0."""
    error = x.std(0, ddof=1) / np.sqrt(len(x))
    return {
        "mean": x.mean(0).tolist(),
        "error": error.tolist(),
        "positive": (x > 0).mean(0).tolist(),
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Means over episodes of everything."""
    relative, own = found["relative"], found["own"]
    losses, ious = found["stretched"]
    return {
        "episodes": len(found["rms"]),
        "rms": mean_of(found["rms"]),
        "share": mean_of(found["share"]),
        "radial_share_of_gradient": mean_of(found["radial"]),
        "relative": {
            "factors": RELATIVE,
            **{name: mean_of(x) for name, x in relative._asdict().items()},
        },
        "own": {
            "factors": OWN,
            **{name: mean_of(x) for name, x in own._asdict().items()},
            "closed_form": mean_of(found["closed"][:, None] * np.square(OWN)),
            "of_same_draws": agreement(own.of_scale, found["same_draws"][:, None] * np.square(OWN)),
            "sum_of_slopes": mean_of(own.of_scale + own.of_norm),
        },
        "stretched": {
            "factors": STRETCHED,
            "loss": mean_of(losses),
            "iou": mean_of(ious),
        },
    }


def agreement(
    measured: Float[np.ndarray, "n k"], predicted: Float[np.ndarray, "n k"]
) -> dict[str, list[float]]:
    """How measured values follow predicted ones over n episodes.

    Returns:
        "slope" of the least-squares line through 0, its 95 % bootstrap interval over episodes
        ("low", "high"), and the "correlation".
    """

    def slope(a: Float[np.ndarray, "... n k"], b: Float[np.ndarray, "... n k"]) -> np.ndarray:
        return (a * b).sum(-2) / np.square(b).sum(-2)

    drawn = np.random.default_rng(0).integers(len(measured), size=(2_000, len(measured)))
    low, high = np.quantile(slope(measured[drawn], predicted[drawn]), [0.025, 0.975], axis=0)
    pairs = zip(measured.T, predicted.T, strict=True)
    return {
        "slope": slope(measured, predicted).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "correlation": [float(np.corrcoef(a, b)[0, 1]) for a, b in pairs],
    }


def trajectories(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """|sigma| / |mu| over the steps of every run of fold 0 and the first seed that has a sigma."""
    runs = sorted(folder.glob("*-fold0-mask-*/results.json"))
    first = min((x.parent.name.rpartition("-seed")[2] for x in runs), default="")
    found = {}
    for path in runs:
        name, _, seed = path.parent.name.rpartition("-seed")
        lines = [x for x in curves.read(path.parent) if "train/scale_to_norm" in x]
        if seed == first and lines:
            label = name.partition("-mask-")[2]
            found[label] = [(x["step"], x["train/scale_to_norm"]) for x in lines]
    return found


def draw(results: dict[str, Any]) -> Figure:
    """The expected loss and its slopes against the noise, the loss of stretched prompts, paths."""
    figure = Figure((10, 7.2), layout="constrained")
    (losses, of_sigma), (stretched, over_steps) = figure.subplots(2, 2)
    for name, colour in (("trained", "C0"), ("untrained", "C1")):
        of = results[name]["relative"]
        for axes, key in ((losses, "loss"), (of_sigma, "of_scale")):
            mean, error = (np.array(of[key][x]) for x in ("mean", "error"))
            axes.errorbar(RELATIVE, mean, 2 * error, color=colour, label=name, capsize=2)
        at = results[name]["stretched"]
        mean, error = (np.array(at["loss"][x]) for x in ("mean", "error"))
        stretched.errorbar(STRETCHED, mean, 2 * error, color=colour, label=name, capsize=2)
    losses.set(ylabel="expected loss", title="Loss under noise")
    of_sigma.set(ylabel="d E L / d log sigma", title="What pulls sigma down (above 0) or up")
    of_sigma.axhline(0, color="grey", linewidth=0.8)
    for axes in (losses, of_sigma):
        axes.set(xscale="log", xlabel="noise / root mean square of the mean prompt")
    stretched.set(
        xscale="log",
        xlabel="factor on the mean prompts",
        ylabel="loss without noise",
        title="Loss of longer and shorter prompts",
    )
    for axes in (losses, of_sigma, stretched):
        axes.legend(frameon=False)
    styles = [(line, f"C{i}") for line in ("-", "--") for i in range(10)]
    for (line, colour), (name, points) in zip(styles, results["paths"].items(), strict=False):
        over_steps.plot(*zip(*points, strict=True), line, color=colour, label=name)
    over_steps.set(
        yscale="log", xlabel="step", ylabel="|sigma| / |mu|", title="Sigma in training, fold 0"
    )
    low, high = over_steps.get_ylim()
    over_steps.set_ylim(low, high**1.5 / low**0.5)  # room for the names
    over_steps.legend(frameon=False, fontsize=6, ncols=2, loc="upper left")
    return figure


def joined(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The episodes of several models as one list."""
    return jax.tree.map(lambda *x: np.concatenate(x), *several)


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured."""
    folders = finished(args.runs)
    print(f"{len(folders)} runs", flush=True)
    trained, untrained, folds = [], [], set()
    for folder in folders:
        model, cfg = load(folder)
        trained.append(measured(model, cfg, args))
        if cfg.data.fold not in folds:
            folds.add(cfg.data.fold)
            untrained.append(measured(build(cfg), cfg, args))
        print(f"{folder.name}: share of sigma {trained[-1]['share'].mean():.3f}", flush=True)
    return {
        "runs": [x.name for x in folders],
        "trained": summary(joined(trained)),
        "untrained": summary(joined(untrained)),
    }


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=pathlib.Path, required=True)
    parser.add_argument("--episodes", type=int, default=40, help="of each run (default: 40)")
    parser.add_argument("--pairs", type=int, default=8, help="draws x, each also as -x")
    parser.add_argument("--products", type=int, default=8, help="products with the Hessian")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs"))
    parser.add_argument("--redraw", action="store_true", help="measure nothing, read the JSON")
    args = parser.parse_args()
    file = args.out / "studies" / "sigma.json"
    results = json.loads(file.read_text()) if args.redraw else asked(args)
    results["paths"] = trajectories(args.runs)
    with replacing(file) as part:
        part.write_text(json.dumps(results, indent=1) + "\n")
    with replacing(args.out / "images" / "sigma.png") as part:
        draw(results).savefig(part, dpi=110, format="png")


if __name__ == "__main__":
    main()
