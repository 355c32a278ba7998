"""How well a trained model predicts where its masks are wrong, on its fold's test episodes.

    python -m studies.uncertainty [--model=prosam-shapes] [--episodes=100]

For maps it prints how often a wrong pixel has a higher value than a right one (the area under the
ROC curve; 0.5 by chance), for numbers per mask their rank correlation with the mask's true IoU.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from prosam_jax import inference
from prosam_jax.config import replaced
from prosam_jax.data.loader import make_loader
from prosam_jax.equations import foreground
from prosam_jax.evaluation import evaluate
from prosam_jax.model import ProSAM, load
from prosam_jax.types import Episode
from prosam_jax.weights.pretrained import DEFAULT

SPREADS = (1.0, 3.0, 10.0, 30.0)
"""Factors on the trained scale sigma."""

ENTROPY, SCORE, EXPECTED = "entropy of the mean prompts' mask", "score", "predicted IoU"
DISAGREEMENT = {factor: f"disagreement, sigma x {factor:g}" for factor in SPREADS}


def judged(prosam: ProSAM, episode: Episode, samples: int) -> dict[str, Array]:
    """Maps (b, h, w) and numbers (b) of a batch by name; also "wrong" (b, h, w) and "iou" (b)."""
    features = prosam.encode(episode)
    posterior = prosam.posterior(features)
    assert posterior.log_scale is not None, "a deterministic model has no uncertainty"
    size, truth = episode.target_mask.shape[1:], jnp.asarray(episode.target_mask)
    logits, expected = prosam.decode_with_iou(features.image_embeddings, posterior.mean, size)
    mask, p, q = foreground(logits), jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    found = {
        "wrong": (mask != truth) & ~episode.target_ignore,
        "iou": (mask & truth).sum((1, 2)) / jnp.maximum((mask | truth).sum((1, 2)), 1),
        ENTROPY: inference.entropy(p, q),
        SCORE: inference.confidence(logits),
        EXPECTED: expected,
    }
    for factor, name in DISAGREEMENT.items():
        wider = posterior._replace(log_scale=posterior.log_scale + jnp.log(factor))
        found[name] = inference.uncertainty(
            prosam, features.image_embeddings, wider, size, samples, jax.random.key(0)
        )
    return found


def ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1 on; equal values share their mean rank."""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[which]


def roc_area(values: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Fraction of pairs of a positive and a negative in which the positive has the higher value."""
    n = int(positive.sum())
    return float((ranks(values)[positive].sum() - n * (n + 1) / 2) / (n * (len(values) - n)))


def rank_correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def main() -> None:
    """Prints the measures of all maps and numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10)
    args = parser.parse_args()
    prosam, cfg = load(args.model, {})
    source = evaluate.test_episodes(replaced(cfg, {"eval.episodes": args.episodes}))
    judge = jax.jit(judged, static_argnames="samples")
    batches: list[dict[str, Any]] = []
    for episode in make_loader(source, batch_size=cfg.eval.batch_size):
        found = jax.device_get(judge(prosam, episode, args.samples))
        batches.append({name: x[episode.valid] for name, x in found.items()})
    whole = {name: np.concatenate([x[name] for x in batches]) for name in batches[0]}
    wrong, iou = whole.pop("wrong"), whole.pop("iou")
    print(f"{len(iou)} episodes, mean IoU {iou.mean():.3f}, {wrong.mean():.2%} of pixels wrong")
    for name in (*DISAGREEMENT.values(), ENTROPY, SCORE, EXPECTED):
        x = whole[name]
        line = f"{name:36}"
        if x.ndim == 3:
            line += f"  largest {x.max():8.2g}  ROC area {roc_area(x.ravel(), wrong.ravel()):.3f}"
            x = -x.mean((1, 2))
        print(f"{line}  correlation with IoU {rank_correlation(x, iou):+.2f}")


if __name__ == "__main__":
    main()
