"""Training curves in `metrics.jsonl` and TensorBoard."""

import json
import pathlib
from collections.abc import Mapping

from prosam_jax.atomic import replacing


class Curves:
    """Writes numbers by step, as JSON lines to `metrics.jsonl` and to TensorBoard.

    Lines of steps after `start` are dropped, because those steps will be done again, and so is a
    line that a crash cut short.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        path = workdir / "metrics.jsonl"
        old = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in old if _step_of(line) <= start]
        with replacing(path) as part:
            part.write_text("".join(f"{line}\n" for line in kept))
        self._lines = path.open("a", buffering=1)
        import tensorboardX  # here, because it imports torch if installed, which takes seconds

        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=True
        )

    def write(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step, as "group/name"."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **named}) + "\n")
        for name, value in named.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._board.close()


def newest(workdir: pathlib.Path) -> dict[str, float]:
    """The last complete line of training in `metrics.jsonl`; empty if there is none yet."""
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    return next((json.loads(x) for x in reversed(lines) if "train/loss" in x), {})


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")
