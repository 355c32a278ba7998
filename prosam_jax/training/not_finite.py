"""What happens when a loss is not finite: the batch is kept, and the run may go on otherwise."""

import contextlib
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from prosam_jax import atomic
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError

_DAMAGED = (zipfile.BadZipFile, zlib.error)
_NAME = re.compile(r"not_finite_(\d+)\.npz")


class NotFinite(FloatingPointError):
    """A metric of step `step`, or of a step from the state after it, is not finite."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def check(log: Mapping[str, np.ndarray], step: int, where: str) -> None:
    """Raises NotFinite if a metric is not finite, with words such as "at" step 5."""
    for name, value in log.items():
        if not np.isfinite(value).all():
            raise NotFinite(f"{name} is {value} {where} step {step}, which is not saved", step)


def keep_batch(
    workdir: pathlib.Path, step: int, source: EpisodeSource, size: int, **state: float
) -> str:
    """Writes the batch of a step to `not_finite_STEP.npz` in `workdir`; says where it is.

    Its arrays are those of `types.Episode`, and `state`. Those of earlier steps are deleted.

    Args:
        workdir: Folder of the run.
        step: The step.
        source: The run's episodes.
        size: Episodes in a batch.
        state: What led to the step: "after", the step of the checkpoint that the run goes on from,
            0 for none, and "learning_rate".
    """
    path = workdir / f"not_finite_{step}.npz"
    loader = make_loader(source, batch_size=size, start=step - 1, stop=step)
    try:
        with contextlib.closing(loader), atomic.writing(path) as file:
            arrays: dict[str, Any] = {**next(loader)._asdict(), **state}
            np.savez_compressed(file, **arrays)
    except (OSError, UserError) as error:  # what the run ended with matters more
        return f"its batch could not be kept: {error}"
    for other in workdir.iterdir():
        if _NAME.fullmatch(other.name) and other != path:
            other.unlink()
    return f"its batch is kept in {path}"


def ended(workdir: pathlib.Path, **state: float) -> bool:
    """Whether this state, as `keep_batch` takes it, led to a loss that was not finite."""
    return any(_NAME.fullmatch(x.name) and _kept(x) == state for x in workdir.iterdir())


def _kept(path: pathlib.Path) -> dict[str, float]:
    """The state in a file; empty if it has none that can be read."""
    try:
        with path.open("rb") as file, np.load(file) as held:
            return {name: held[name].item() for name in ("after", "learning_rate")}
    except (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, *_DAMAGED):
        return {}
