"""Runs that were never trained, with all that a finished one leaves."""

import json

import numpy as np

from prosam_jax.comparison import methods
from prosam_jax.config import Config, to_dict
from prosam_jax.evaluation import controls, metrics, results, strategies
from prosam_jax.evaluation.prediction import RESULT
from prosam_jax.evaluation.results import Example
from prosam_jax.types import Episode
from prosam_jax.weights import prompt_encoder

BASE = Config.from_dict(
    {
        "data": {"name": "shapes", "image_size": 32},
        "train": {"steps": 60},
        "sam": {"model": "tiny", "weights": "random", "image_size": 64},
        "backbone": {"name": "tiny", "weights": "random"},
    }
)
CLASS = '<b>&"'


def example(seed, *, uncertain):
    rng = np.random.default_rng(seed)

    def mask(*shape):
        return rng.random(shape) > 0.5

    episode = Episode(
        reference_image=rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        reference_mask=mask(2, 32, 32),
        target_image=rng.integers(0, 256, (32, 32, 3), np.uint8),
        target_mask=mask(32, 32),
        target_ignore=np.zeros((32, 32), bool),
        class_id=np.int32(1),
        index=np.int32(seed),
        valid=np.bool_(True),
        target_size=np.array([32, 32], np.int32),
    )
    masks = {controls.WRONG: mask(32, 32), controls.EMPTY: mask(32, 32)}
    uncertainty = rng.random((32, 32), np.float32) if uncertain else None
    return Example(episode, CLASS, mask(32, 32), masks, uncertainty)


def finished(workdir, method, miou, base=BASE):
    """A folder as a finished run leaves it."""
    run = methods.run_of(base, workdir, method, {"distribution.name": method})
    finish(run, miou)
    return run


def counts_of(miou, episodes=3):
    """Pixels of episodes that have this IoU, in percent, each of 1,000 object pixels."""
    hit = round(10 * miou)
    return np.tile([hit, 0, 1000 - hit, 5000], (episodes, 1))


def finish(run, miou, counts=None, scoring=methods.OWN, classes=(CLASS,)):
    """Writes what a finished run leaves.

    `counts` are its episodes' pixels by name; `classes` take turns in them.
    """
    folder = run.workdir / scoring.name
    folder.mkdir(parents=True, exist_ok=True)
    prompt_encoder.write_frozen(run.cfg, run.workdir)
    counts = counts or {RESULT: counts_of(miou)}
    n = len(counts[RESULT])
    digest = "ab" * 31 + f"{run.cfg.data.fold:02x}"  # folds have different episodes
    named, class_id = dict(enumerate(classes, 1)), 1 + np.arange(n) % len(classes)
    one = results.Counted(
        run.cfg.eval.seed, digest, named, class_id, [f"{i}.jpg" for i in range(n)], counts
    )
    scores = {name: metrics.scores(of, class_id) for name, of in counts.items()}
    percent = {x: {"miou": 100 * of.miou, "fb_iou": 100 * of.fb_iou} for x, of in scores.items()}
    results.write_episodes(folder / "episodes.csv", results.Result([one], False, 1.0, [], n, 0))
    held = {
        **percent[RESULT],
        "strategies": {name: of for name, of in percent.items() if name in strategies.NAMES},
        "per_class": {CLASS: miou},
        "classes": {str(c): name for c, name in named.items()},
        "episodes": n,
        "episode_list_sha256": digest,
        "seconds": 12.0,
        "step": run.cfg.train.steps,
        "versions": {"prosam_jax": "0.0.9"},
        "device": "1 x abacus",
        "config": to_dict(methods.scored_with(run, scoring)),
        "controls": {
            name: {"miou": miou - i, "fb_iou": 1.0 + i} for i, name in enumerate(controls.MEANING)
        },
        "prior_threshold": 0.44,
    }
    (folder / "results.json").write_text(json.dumps(held))
    lines = [
        {"step": 20 * i, "train/loss": 1 / i, "train/miou": 0.1 * i, "train/episodes_per_s": 2.0}
        for i in (1, 2, 3)
    ]
    (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    uncertain = run.cfg.distribution.name != "vrp"
    examples = [example(i, uncertain=uncertain) for i in range(3)]
    results.save_examples(folder / "examples.npz", examples)
