"""The best and worst episodes of a table, predicted once more for pictures.

An evaluation keeps the pixels that it counted, not the masks.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, Integer

from prosam_jax import console, model, sharding
from prosam_jax.comparison import methods, pairs, reproduce
from prosam_jax.comparison.methods import Run
from prosam_jax.comparison.pairs import Group
from prosam_jax.comparison.paper import Row
from prosam_jax.comparison.reproduce import Made
from prosam_jax.data.episodes import EpisodeSource, EpisodeSpec, episode_list_digest
from prosam_jax.data.folds import FoldIndex
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate, metrics, prediction
from prosam_jax.evaluation.results import Counted, Example
from prosam_jax.feature_cache.cache import opened

COUNT = 3
"""Episodes of each kind."""

ALIKE = 500
"""Of so many pixels one may differ when an episode is predicted again, on another device maybe."""


class Extremes(NamedTuple):
    """Episodes of one fold, one seed and one list.

    Attributes:
        group: The two rows, or the one.
        fold: The fold.
        kinds: Indices of the episodes of each kind, by what they are.
        iou: IoU of each episode of the list in each row, from 0 to 1.
        shown: The episodes of `kinds` by index, as each row predicts them. `prediction` is the mask
            of the row.
    """

    group: Group
    fold: int
    kinds: dict[str, list[int]]
    iou: list[Float[np.ndarray, " n"]]
    shown: list[dict[int, Example]]


def found(made: Made) -> Extremes:
    """The episodes, predicted with the trained runs of the first fold and seed.

    Raises:
        UserError: The episodes or the masks are not those that the run was scored with, or the
            dataset or a checkpoint is missing.
    """
    group, fold = pairs.pictured(made), made.folds[0]
    of_rows = [(row, made.runs[row.labels, fold][0]) for row in group.rows]
    lists = [reproduce.counted(run, reproduce.scoring_of(run, row))[0] for row, run in of_rows]
    iou = [
        metrics.foreground_iou(one.counts[row.scored])
        for one, row in zip(lists, group.rows, strict=True)
    ]
    kinds = chosen(iou, group.names)
    wanted = sorted({i for of in kinds.values() for i in of})
    shown = [
        _predicted(run, row, one, wanted) for (row, run), one in zip(of_rows, lists, strict=True)
    ]
    return Extremes(group, fold, kinds, iou, shown)


def chosen(iou: Sequence[Float[np.ndarray, " n"]], names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of `COUNT` episodes of each kind, the most extreme first.

    Args:
        iou: IoU of each episode in one or two rows.
        names: Of these rows.

    Returns:
        The episodes in which the first gains most over the second and loses most to it, without
        those in which it gains or loses nothing; its worst and its best.
    """
    kinds = {}
    first, name = iou[0], names[0]
    for other, below in zip(iou[1:], names[1:], strict=True):
        gain = first - other
        kinds[f"Where {name} gains most over {below}"] = _most(gain, gain > 0)
        kinds[f"Where {name} loses most to {below}"] = _most(-gain, gain < 0)
    everything = np.ones(len(first), bool)
    kinds[f"The worst of {name}"] = _most(-first, everything)
    kinds[f"The best of {name}"] = _most(first, everything)
    return kinds


def _most(values: Float[np.ndarray, " n"], among: np.ndarray) -> list[int]:
    """The first of those that have the same value."""
    return [i for i in np.argsort(-values, kind="stable").tolist() if among[i]][:COUNT]


def _predicted(run: Run, row: Row, held: Counted, wanted: Sequence[int]) -> dict[int, Example]:
    """Episodes by index, predicted by a trained run as a row of a table is scored."""
    scoring = reproduce.scoring_of(run, row)
    cfg = methods.scored_with(run, scoring)
    scored = run.workdir / scoring.name / "results.json"
    source = evaluate.test_episodes(cfg)
    if episode_list_digest(source.spec(i) for i in range(len(source))) != held.digest:
        raise UserError(
            f"{scored} is of other episodes than the files of {cfg.data.name} now give: put those "
            "back as they were, or delete it, and run the same command again"
        )
    source = _part(source, wanted)
    parts, _ = model.restored(cfg, run.workdir, "latest")
    mesh = sharding.make_mesh(cfg.eval.batch_size)
    params, frozen = sharding.replicate((parts.params, parts.frozen), mesh)
    sam = nnx.merge(parts.graph, params, frozen).sam
    original = cfg.eval.resolution == "original"
    with console.counting(f"predicting for pictures, {run.workdir.name}", len(source)) as count:
        again = evaluate.evaluate(
            prediction.make_predict_step(parts.graph, samples=cfg.eval.samples, original=original),
            params,
            frozen,
            source,
            batch_size=cfg.eval.batch_size,
            mesh=mesh,
            cache=opened(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh)),
            workers=cfg.data.workers,
            patience=cfg.data.patience,
            examples=len(source),
            on_batch=count,
        )
    counts = again.lists[0].counts[row.scored]
    _check_same(scored, wanted, counts, held.counts[row.scored][wanted])
    return {
        i: example._replace(
            prediction=example.controls.get(row.scored, example.prediction), controls={}
        )
        for i, example in zip(wanted, again.examples, strict=True)
    }


def _part(source: EpisodeSource, wanted: Sequence[int]) -> EpisodeSource:
    draw = functools.partial(_nth, source.draw, tuple(wanted))
    return dataclasses.replace(source, draw=draw, length=len(wanted))


def _nth(
    draw: Callable[[FoldIndex, int, int, int], EpisodeSpec],
    indices: tuple[int, ...],
    fold: FoldIndex,
    seed: int,
    index: int,
    shots: int,
) -> EpisodeSpec:
    return draw(fold, seed, indices[index], shots)


def _check_same(
    scored: pathlib.Path,
    indices: Sequence[int],
    counts: Integer[np.ndarray, "n 4"],
    held: Integer[np.ndarray, "n 4"],
) -> None:
    apart = np.abs(counts.astype(np.int64) - held).max(1)
    worst = int((apart / held.sum(1)).argmax())
    if apart[worst] > held[worst].sum() / ALIKE:
        was, now = (100 * float(metrics.foreground_iou(x[worst])) for x in (held, counts))
        raise UserError(
            f"{scored} is of another checkpoint or of other pictures than there are now: episode "
            f"{indices[worst]} had an IoU of {was:.1f} % and has {now:.1f} %; delete it and run "
            "the same command again"
        )
