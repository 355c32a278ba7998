"""Results of an evaluation, and the files they are saved in."""

import dataclasses
import pathlib
import platform
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import flax
import jax
import numpy as np
from jaxtyping import Bool, Float

import prosam_jax
from prosam_jax.atomic import replacing
from prosam_jax.config import Config, to_dict
from prosam_jax.errors import UserError
from prosam_jax.evaluation.metrics import Scores
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
        uncertainty: How much masks of sampled prompts disagree; None if it was not computed.
    """

    episode: Episode
    class_name: str
    prediction: Bool[np.ndarray, "h w"]
    controls: dict[str, Bool[np.ndarray, "h w"]]
    uncertainty: Float[np.ndarray, "h w"] | None


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of an evaluation.

    Attributes:
        scores: The metrics.
        classes: Names of the fold's test classes, including those without an episode.
        episodes: Number of episodes that were scored.
        digest: SHA-256 of the list of episodes (`data.episodes.episode_list_digest`).
        seconds: Wall time, including compilation.
        examples: The first episodes, for pictures.
        references: Number of references in all episodes.
        empty_annotations: How many of them had no annotated cell left at the size of the features.
        controls: Scores of the controls and baselines, by name (`evaluation.controls`).
        prior_threshold: Threshold of the cosine prior among them; None without controls.
    """

    scores: Scores
    classes: dict[int, str]
    episodes: int
    digest: str
    seconds: float
    examples: list[Example]
    references: int
    empty_annotations: int
    controls: dict[str, Scores]
    prior_threshold: float | None = None


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
    """Writes scores (in percent), the digest of the episodes and the settings, as JSON."""
    scores = result.scores
    results = {
        "miou": 100 * scores.miou,
        "fb_iou": 100 * scores.fb_iou,
        "per_class": {result.classes[c]: 100 * iou for c, iou in scores.per_class.items()},
        "episodes": result.episodes,
        "references": result.references,
        "empty_annotations": result.empty_annotations,
        "episode_list_sha256": result.digest,
        "seconds": round(result.seconds, 2),
        "step": step,
        "versions": versions(),
        "device": device_line(),
        "config": to_dict(cfg),
    }
    if result.controls:
        results["controls"] = {
            name: {"miou": 100 * scores.miou, "fb_iou": 100 * scores.fb_iou}
            for name, scores in result.controls.items()
        }
        results["prior_threshold"] = result.prior_threshold
    write_object(path, results)


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
