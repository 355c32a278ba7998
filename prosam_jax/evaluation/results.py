"""Results of an evaluation, and the files they are saved in."""

import csv
import dataclasses
import functools
import pathlib
import platform
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from jaxtyping import Bool, Float, Integer

import prosam_jax
from prosam_jax.atomic import replacing
from prosam_jax.config import Config, to_dict
from prosam_jax.errors import UserError
from prosam_jax.evaluation import intervals, metrics, strategies
from prosam_jax.evaluation.intervals import Draws, Interval, Listed
from prosam_jax.evaluation.metrics import COUNTS, Scores
from prosam_jax.evaluation.prediction import RESULT
from prosam_jax.json_files import write_object
from prosam_jax.types import Episode


class Example(NamedTuple):
    """An episode (without batch axis), its class and what was predicted for it.

    Attributes:
        episode: The episode; if controls were scored, with as many references of a wrong class
            after its own.
        class_name: Name of its class.
        prediction: The predicted mask.
        controls: Masks of the controls, by name.
        uncertainty: Entropy of each pixel of the result, in bits; None if it was not computed.
    """

    episode: Episode
    class_name: str
    prediction: Bool[np.ndarray, "h w"]
    controls: dict[str, Bool[np.ndarray, "h w"]]
    uncertainty: Float[np.ndarray, "h w"] | None


@dataclasses.dataclass(frozen=True)
class Counted:
    """What was counted on one list of episodes.

    Attributes:
        seed: Seed of the list.
        digest: SHA-256 of the list (`data.episodes.episode_list_digest`).
        classes: Names of the fold's test classes, including those without an episode.
        class_id: Class of each episode.
        target: Name of each episode's target picture.
        counts: Pixels of each episode (`metrics.confusion`) for the result (`RESULT`), the
            strategies, controls and baselines, by name.
    """

    seed: int
    digest: str
    classes: dict[int, str]
    class_id: Integer[np.ndarray, " n"]
    target: list[str]
    counts: dict[str, Integer[np.ndarray, "n 4"]]

    def scores(self, name: str, absent: bool) -> Scores:
        """The scores of one name; with `absent` classes without an episode count as 0."""
        return metrics.scores(self.counts[name], self.class_id, self.classes if absent else ())


def scores(lists: Sequence[Counted], name: str, absent: bool) -> Scores:
    """The mean scores of one name over lists of a fold; `absent` as for `Counted.scores`."""
    return metrics.mean([x.scores(name, absent) for x in lists])


def draws(lists: Sequence[Counted], name: str, absent: bool) -> Draws:
    """`scores` in each draw of the bootstrap."""
    listed = [Listed(x.counts[name], x.class_id, np.array(x.target)) for x in lists]
    return intervals.draws(listed, lists[0].digest, lists[0].classes if absent else ())


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of an evaluation.

    Attributes:
        lists: What was counted on each list of episodes, `eval.seeds` of them.
        absent: Whether classes without an episode count as 0.
        seconds: Wall time, including compilation.
        examples: The first episodes, for pictures.
        references: Number of references in all episodes.
        empty_annotations: How many of them had no annotated cell left at the size of the features.
        prior_threshold: Threshold of the cosine prior among the controls; None without controls.
    """

    lists: Sequence[Counted]
    absent: bool
    seconds: float
    examples: list[Example]
    references: int
    empty_annotations: int
    prior_threshold: float | None = None

    @property
    def classes(self) -> dict[int, str]:
        """Names of the fold's test classes, including those without an episode."""
        return self.lists[0].classes

    @property
    def episodes(self) -> int:
        """Number of episodes that were scored."""
        return sum(len(x.class_id) for x in self.lists)

    @property
    def others(self) -> list[str]:
        """Names of what was scored beside the result, in the order of tables."""
        held = self.lists[0].counts
        merged = [name for name in strategies.NAMES if name in held]
        return merged + [name for name in held if name not in (RESULT, *merged)]

    @functools.cached_property
    def scores(self) -> Scores:
        """The scores of the result."""
        return self.scores_of(RESULT)

    def scores_of(self, name: str) -> Scores:
        """The scores of one name, means over the lists."""
        return scores(self.lists, name, self.absent)

    def draws(self, name: str = RESULT) -> Draws:
        """`scores_of` in each draw of the bootstrap."""
        return draws(self.lists, name, self.absent)


def joined(several: Sequence[Result]) -> Result:
    """One result of several evaluations of the same model, each on a list of its own."""
    return Result(
        lists=[one for x in several for one in x.lists],
        absent=several[0].absent,
        seconds=sum(x.seconds for x in several),
        examples=several[0].examples,
        references=sum(x.references for x in several),
        empty_annotations=sum(x.empty_annotations for x in several),
    )


def versions() -> dict[str, str]:
    """The versions of software that results depend on."""
    return {
        "prosam_jax": prosam_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
    }


def device_line() -> str:
    """Number and kind of the devices, and the version of JAX, in one line."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"


def write_results(path: pathlib.Path, result: Result, cfg: Config, step: int | None) -> None:
    """Writes scores (in percent), the digests of the episodes and the settings, as JSON.

    Intervals are over target pictures (`evaluation.intervals`); "difference" is how far the result
    lies above another score on the same episodes.
    """
    drawn, per_class = result.draws(), result.scores.per_class
    results = {
        **_percent(result.scores, drawn),
        "per_class": {result.classes[c]: 100 * iou for c, iou in per_class.items()},
        "classes": {str(c): name for c, name in result.classes.items()},
        "rates": {name: 100 * x for name, x in result.scores.rates._asdict().items()},
        "shares_of_pixels": {
            name: 100 * x for name, x in zip(COUNTS, result.scores.shares, strict=True)
        },
        "episodes": result.episodes,
        "references": result.references,
        "empty_annotations": result.empty_annotations,
        "episode_list_sha256": result.lists[0].digest,
        "seconds": round(result.seconds, 2),
        "step": step,
        "versions": versions(),
        "device": device_line(),
        "config": to_dict(cfg),
    }
    if len(result.lists) > 1:
        results["lists"] = [
            {"seed": x.seed, "episode_list_sha256": x.digest}
            | {"miou": 100 * of.miou, "fb_iou": 100 * of.fb_iou}
            for x in result.lists
            for of in [x.scores(RESULT, result.absent)]
        ]
    for name in result.others:
        kind = "strategies" if name in strategies.NAMES else "controls"
        results.setdefault(kind, {})[name] = _beside(result, name, drawn)
    if result.prior_threshold is not None:
        results["prior_threshold"] = result.prior_threshold
    write_object(path, results)


def _percent(scores: Scores, drawn: Draws) -> dict[str, Any]:
    """The two scores with their intervals, in percent."""
    return {
        "miou": 100 * scores.miou,
        "fb_iou": 100 * scores.fb_iou,
        "miou_interval": percent(intervals.interval(drawn.miou)),
        "fb_iou_interval": percent(intervals.interval(drawn.fb_iou)),
    }


def _beside(result: Result, name: str, of_result: Draws) -> dict[str, Any]:
    scores, drawn = result.scores_of(name), result.draws(name)
    between = intervals.interval(of_result.miou - drawn.miou)
    return {
        **_percent(scores, drawn),
        "difference": 100 * (result.scores.miou - scores.miou),
        "difference_interval": percent(between),
    }


def percent(interval: Interval) -> list[float]:
    """The bounds in percent, for JSON."""
    return [100 * x for x in interval]


EPISODE_COLUMNS = ("seed", "episode", "target", "class_id", "class", "scored", "iou", *COUNTS)
_ERRORS = "surrogateescape"  # for any name that a file can have


def write_episodes(path: pathlib.Path, result: Result) -> None:
    """Writes the pixels of each episode, for each name that was scored, as CSV.

    `target` is the picture's name, `iou` is that of the object, from 0 to 1; `COUNTS` are numbers
    of pixels. From them any score and interval follows.
    """
    with (
        replacing(path) as part,
        part.open("w", newline="", encoding="utf-8", errors=_ERRORS) as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(EPISODE_COLUMNS)
        for one in result.lists:
            for name, counts in one.counts.items():
                iou = metrics.foreground_iou(counts)
                for i, c in enumerate(one.class_id.tolist()):
                    pixels = counts[i].tolist()
                    writer.writerow(
                        [
                            *(one.seed, i, one.target[i], c, one.classes[c], name),
                            *(f"{iou[i]:.6f}", *pixels),
                        ]
                    )


def read_episodes(
    path: pathlib.Path, digests: Sequence[str], classes: Mapping[str, str]
) -> list[Counted]:
    """The lists that `write_episodes` wrote.

    Args:
        path: The file.
        digests: SHA-256 of each list, from `results.json`.
        classes: Names of the fold's test classes by number, from there, too.

    Raises:
        UserError: The file is damaged, or has other lists.
        OSError: It cannot be read.
    """
    found: dict[int, dict[str, dict[int, list[int]]]] = {}
    about: dict[int, dict[int, tuple[str, int]]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors=_ERRORS) as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != EPISODE_COLUMNS:
                raise ValueError("its first line is not that of this version")
            for seed, episode, target, class_id, class_name, name, _, *pixels in reader:
                one, i = int(seed), int(episode)
                tp, fp, fn, tn = map(int, pixels)
                found.setdefault(one, {}).setdefault(name, {})[i] = [tp, fp, fn, tn]
                about.setdefault(one, {})[i] = target, int(class_id)
                if classes.get(class_id) != class_name:
                    raise ValueError(f"{class_name} is no class of its results.json")
        if len(found) != len(digests):
            raise ValueError(f"{len(found)} lists instead of {len(digests)}")
        named = {int(number): name for number, name in classes.items()}
        return [
            _counted(seed, digest, named, found[seed], about[seed])
            for seed, digest in zip(found, digests, strict=True)
        ]
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and score the run again"
        ) from None


def _counted(
    seed: int,
    digest: str,
    classes: Mapping[int, str],
    rows: Mapping[str, Mapping[int, list[int]]],
    about: Mapping[int, tuple[str, int]],
) -> Counted:
    episodes = range(len(about))
    if any(sorted(of) != list(episodes) for of in rows.values()):
        raise ValueError(f"an episode of list {seed} is missing")
    return Counted(
        seed,
        digest,
        dict(classes),
        np.array([about[i][1] for i in episodes]),
        [about[i][0] for i in episodes],
        {name: np.array([of[i] for i in episodes]) for name, of in rows.items()},
    )


def save_examples(path: pathlib.Path, examples: Sequence[Example]) -> None:
    """Saves examples as arrays, for pictures that are drawn later."""
    arrays = {f"episode/{k}": [getattr(x.episode, k) for x in examples] for k in Episode._fields}
    arrays["class_name"] = [x.class_name for x in examples]
    arrays["prediction"] = [x.prediction for x in examples]
    for name in examples[0].controls:
        arrays[f"control/{name}"] = [x.controls[name] for x in examples]
    if examples[0].uncertainty is not None:
        arrays["uncertainty"] = [x.uncertainty for x in examples]
    stacked = {k: np.stack(x) for k, x in arrays.items()}
    with (
        replacing(path) as part,
        part.open("wb") as file,
    ):  # given a path, NumPy would append ".npz"
        np.savez_compressed(file, allow_pickle=False, **stacked)


def load_examples(path: pathlib.Path) -> list[Example]:
    """Loads what `save_examples` saved.

    Raises:
        UserError: The file is damaged, or of another version.
        OSError: It cannot be read.
    """
    mend = "delete it, and score the run again"
    try:
        with path.open("rb") as file, np.load(file) as held:
            arrays = dict(held)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); {mend}") from error
    needed = {*(f"episode/{name}" for name in Episode._fields), "class_name", "prediction"}
    if missing := sorted(needed - arrays.keys()):
        raise UserError(f"{path} is of another version, without {', '.join(missing)}; {mend}")
    return [
        Example(
            episode=Episode(*(arrays[f"episode/{name}"][i] for name in Episode._fields)),
            class_name=str(arrays["class_name"][i]),
            prediction=arrays["prediction"][i],
            controls={
                name.removeprefix("control/"): x[i]
                for name, x in arrays.items()
                if name.startswith("control/")
            },
            uncertainty=arrays["uncertainty"][i] if "uncertainty" in arrays else None,
        )
        for i in range(len(arrays["prediction"]))
    ]


def iou_of(episode: Episode, mask: Bool[np.ndarray, "h w"]) -> float:
    """The foreground IoU, in [0, 1], of a mask for one episode."""
    counted = ~episode.target_ignore
    overlap = (mask & episode.target_mask & counted).sum()
    return float(overlap / max(((mask | episode.target_mask) & counted).sum(), 1))
