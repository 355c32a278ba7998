"""Training curves in `metrics.jsonl` and TensorBoard."""

import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prosam_jax.atomic import replacing
from prosam_jax.errors import UserError, short
from prosam_jax.json_files import read_lines

METRICS = "metrics.jsonl"
BOARD = "tensorboard"


class Curves:
    """Writes numbers by step, as JSON lines to `metrics.jsonl` and to TensorBoard.

    Lines of steps after `start` are dropped, because those steps will be done again, and so is a
    line that a crash cut short.

    Raises:
        UserError: `metrics.jsonl` is damaged.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        path = workdir / METRICS
        old = read(workdir) if path.exists() else []
        kept = [line for line in old if line["step"] <= start]
        with replacing(path) as part:
            part.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
        self._lines = path.open("a", buffering=1)
        # Here, because it imports torch if installed, which takes seconds. Its SummaryWriter writes
        # in a thread: on a full disk that ends, and the next number or `close` waits for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        board = workdir / BOARD
        board.mkdir(exist_ok=True)
        self._event, self._summary = Event, Summary
        self._board = EventsWriter(str(board / "events"), f".{os.getpid()}")
        # TensorBoard forgets the steps from this one on.
        self._add(start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step, as "group/name".

        Raises:
            OSError: The disk is full.
        """
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **named}) + "\n")
        scalars = [self._summary.Value(tag=x, simple_value=value) for x, value in named.items()]
        self._add(step, summary=self._summary(value=scalars))

    def _add(self, step: int, **what: Any) -> None:
        self._board.write_event(self._event(wall_time=time.time(), step=step, **what))
        self._board.flush()

    def close(self) -> None:
        """Closes both files."""
        try:
            self._lines.close()
        finally:
            self._board.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The complete lines of `metrics.jsonl`.

    Raises:
        UserError: A line is damaged.
        OSError: The file cannot be read.
    """
    path, mend = workdir / METRICS, "repair or delete this line"
    lines = read_lines(path, ("step",), mend)
    for i, line in enumerate(lines, 1):
        if type(line["step"]) is not int or line["step"] < 0:
            raise UserError(
                f"{path}, line {i} is damaged (its step is {short(line['step'])}, no number of "
                f"steps); {mend}"
            )
    return lines


def newest(workdir: pathlib.Path) -> dict[str, Any]:
    """The last complete line of training in `metrics.jsonl`; empty if there is none yet.

    Raises:
        UserError: A line is damaged.
        OSError: The file cannot be read.
    """
    return next((line for line in reversed(read(workdir)) if "train/loss" in line), {})


def seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Duration of a training in seconds, from the lines of `metrics.jsonl`."""
    before, total = 0, 0.0
    for line in lines:
        if "train/loss" in line:
            total += (line["step"] - before) * batch_size / line["train/episodes_per_s"]
            before = line["step"]
    return total
