"""A training that is killed again and again ends with the bits of one that was left alone.

    make endurance
    make endurance ARGS="--kills 100 --seed 7"

Two tiny trainings of the same settings: one runs through, the other is ended by SIGKILL at random
moments and started again with the same command. It saves every step, so that most kills hit a
checkpoint that is being written. Prints a line for each kill; the status is 1 if anything differs.
"""

import argparse
import collections
import contextlib
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO

import jax
import numpy as np

from prosam_jax.atomic import PART
from prosam_jax.config import read_config
from prosam_jax.report import curves
from prosam_jax.training.loop import Trainer
from prosam_jax.weights.checkpoint import Checkpoints

SETTINGS = (
    "data.name=shapes",
    "data.image_size=32",
    "sam.model=tiny",
    "sam.weights=random",
    "sam.image_size=64",
    "backbone.name=tiny",
    "backbone.weights=random",
    "prompt.num_queries=5",
    "distribution.samples=2",
    "train.log_every=1",
    "train.eval_every=25",
    "eval.episodes=3",
    "eval.pictures=0",
)
LONGEST = 3.0
"""Seconds that a process lives at most after its first step; some die before it."""


def main() -> int:
    """Runs both trainings and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = pathlib.Path(folder, "whole"), pathlib.Path(folder, "killed")
        began = time.monotonic()
        _run_through(whole, args.steps, every=args.steps)
        print(f"left alone: {args.steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        written = _kill_often(killed, args.steps, args.kills, random.Random(args.seed))
        _run_through(killed, args.steps, every=1)
        print(f"kills: {args.kills}, of which {written} left a half-written checkpoint")
        wrong = _differences(whole, killed)
    print("\n".join(wrong) or "the final states are equal bit by bit, and so are the curves")
    return 1 if wrong else 0


def _start(workdir: pathlib.Path, steps: int, every: int, log: IO[str]) -> subprocess.Popen[str]:
    settings = (*SETTINGS, f"train.steps={steps}", f"train.checkpoint_every={every}")
    flags = [f"--config.{x}" for x in settings]
    command = [sys.executable, "-m", "prosam_jax", "train", "--workdir", str(workdir), *flags]
    return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def _run_through(workdir: pathlib.Path, steps: int, every: int) -> None:
    with tempfile.NamedTemporaryFile("w+") as log:
        if _start(workdir, steps, every, log).wait():
            raise RuntimeError(_text(log))


def _kill_often(workdir: pathlib.Path, steps: int, kills: int, rng: random.Random) -> int:
    """Kills as often, and returns how many left a half-written checkpoint."""
    print("kill  after s  began at  checkpoint  last step  left half-written", flush=True)
    written = 0
    for kill in range(1, kills + 1):
        checkpoints = Checkpoints(workdir)
        at = checkpoints.latest or 0
        with tempfile.NamedTemporaryFile("w+") as log:
            process = _start(workdir, steps, 1, log)
            life = rng.uniform(-1, LONGEST)  # below 0: while it starts and reads
            began = time.monotonic()
            while life >= 0 and f"step {at + 1}/" not in _text(log):
                if process.poll() is not None:
                    raise RuntimeError(_text(log))
                time.sleep(0.02)
            time.sleep(life if life >= 0 else 4 * (1 + life))
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                raise RuntimeError(f"it ended before kill {kill}: pass more --steps\n{_text(log)}")
            if "damaged" in _text(log):
                raise RuntimeError(_text(log))
            lived = time.monotonic() - began
        parts = [x.name for x in workdir.glob(f"checkpoints/.*{PART}")]
        written += bool(parts)
        last = 0
        with contextlib.suppress(FileNotFoundError):
            last = int(curves.newest(workdir).get("step", 0))
        print(
            f"{kill:4}  {lived:7.2f}  {at:8}  {checkpoints.latest or 0:10}  {last:9}  "
            f"{'yes' if parts else 'no'}",
            flush=True,
        )
    return written


def _text(log: IO[str]) -> str:
    return pathlib.Path(log.name).read_text()


def _differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    like = Trainer(read_config(whole / "config.json")).state
    states = []
    for workdir in (whole, killed):
        checkpoints = Checkpoints(workdir)
        assert checkpoints.latest is not None
        states.append(checkpoints.restore(checkpoints.latest, like))
    leaves = [jax.tree_util.tree_leaves_with_path(jax.device_get(state)) for state in states]
    wrong = [
        f"{jax.tree_util.keystr(path)} differs"
        for (path, x), (_, y) in zip(*leaves, strict=True)
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]
    lines = [curves.read(workdir) for workdir in (whole, killed)]
    for line in (*lines[0], *lines[1]):
        line.pop("train/episodes_per_s", None)
    if lines[0] != lines[1]:
        steps = [collections.Counter(x["step"] for x in read) for read in lines]
        wrong.append(f"metrics.jsonl differs, in steps {sorted((steps[0] - steps[1]).elements())}")
    print(f"compared: {len(leaves[0])} arrays, {len(lines[0])} lines of metrics.jsonl")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
