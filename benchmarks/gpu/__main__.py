"""Everything that is to be known of a GPU, in stages, the most worth first.

    python -m benchmarks.gpu --minutes 10 --out runs/gpu      # `make gpu`
    python -m benchmarks.gpu --smoke --device cpu             # every stage, small

Each stage is a process of its own with a limit of its own, and writes a log and JSON to the output
folder as soon as it has a figure. A stage that fails or runs out of time is reported, and the next
one begins. `summary.md` is written again after each stage.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import measure

ROOT = pathlib.Path(__file__).parents[2]


class Stage(NamedTuple):
    """A part of the run.

    Attributes:
        name: Name of its files.
        seconds: Its limit on a GPU; less if less time is left.
        command: Arguments of `python -m`, with --out to come.
        small: What replaces the command's options on a small scale.
    """

    name: str
    seconds: int
    command: str
    small: str


STEP = "benchmarks.train_step --turns 5 --batch"
TINY_STEP = "--size 64 --embedding 4 --samples 2 --prompts 8 --groups 2 --turns 2 --matmul 256"
ENCODER = "benchmarks.encoder --dtype bfloat16 --batch 1 8 --attention plain cudnn"
RIVALS = "--torch eager sdpa compile_blocks --turns 5"
REAL = "--sam vit_h --backbone resnet50"
TINY_REAL = "--sam tiny --backbone tiny --size 64"
TINY_TRAINING = f"{TINY_REAL} --steps 3 --workers 0"
TINY_ENCODER = (
    "--model tiny --size 96 --batch 1 2 --attention plain --torch eager sdpa --turns 2 --matmul 256"
)

STAGES = (
    Stage("agree", 120, "benchmarks.gpu.agree", ""),
    Stage("encoder_vit_h", 150, f"{ENCODER} --model vit_h {RIVALS}", TINY_ENCODER),
    Stage(
        "training_bfloat16",
        120,
        f"benchmarks.input {REAL} --dtype bfloat16 --workers 4 --steps 40 --cache",
        TINY_TRAINING,
    ),
    Stage(
        "training_float32",
        120,
        f"benchmarks.input {REAL} --dtype float32 --workers 4 --steps 40 --cache",
        TINY_TRAINING,
    ),
    Stage("step_b2", 90, f"{STEP} 2 --groups 2 5 10 --dtype bfloat16", TINY_STEP),
    Stage(
        "episodes",
        120,
        f"benchmarks.episodes {REAL} --dtype bfloat16 --batch 8 --workers 8 --episodes 200",
        f"{TINY_REAL} --episodes 8 --batch 2 --workers 0 --profiled 2",
    ),
    Stage("profile", 90, f"benchmarks.gpu.profile {REAL}", TINY_REAL),
    Stage("parity", 150, "benchmarks.gpu.parity", "--smoke"),
    Stage("step_b8", 90, f"{STEP} 8 --groups 5 10 --dtype bfloat16", TINY_STEP),
    Stage("step_b2_tf32", 90, f"{STEP} 2 --groups 10 --dtype tf32", TINY_STEP),
    Stage("encoder_vit_b", 120, f"{ENCODER} --model vit_b {RIVALS}", TINY_ENCODER),
)


def run(stage: Stage, args: argparse.Namespace, limit: float) -> str:
    """Runs a stage and returns how it ended."""
    module, *options = stage.command.split()
    if args.smoke:
        options += stage.small.split()
    if module in ("benchmarks.encoder", "benchmarks.train_step"):
        options += ["--device", args.device]
    command = [
        sys.executable,
        "-m",
        module,
        *options,
        "--out",
        str(args.out / stage.name) + ".json",
    ]
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": {"gpu": "cuda", "cpu": "cpu"}[args.device],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs memory, too
        # Stages compile some of the same, and autotuning for a GPU takes most of that.
        "JAX_COMPILATION_CACHE_DIR": str(args.compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    began = time.monotonic()
    with (args.out / f"{stage.name}.log").open("w") as log:
        log.write(" ".join(command[1:]) + "\n")
        log.flush()
        with subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True
        ) as process:
            try:
                code = process.wait(limit)
                how = "done" if code == 0 else f"failed with {code}"
            except subprocess.TimeoutExpired:
                how = f"cut off at {limit:.0f} s"
                os.killpg(process.pid, signal.SIGKILL)  # and its workers
    return f"{how}, {time.monotonic() - began:.0f} s"


def main() -> int:
    """Runs the stages; 0 if all that began are done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="for all stages together")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--stages", nargs="+", choices=[x.name for x in STAGES])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gpu"))
    parser.add_argument("--compiled", type=pathlib.Path, help="compilation cache; OUT/compiled")
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.compiled = (args.compiled or args.out / "compiled").absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    began, ended = time.monotonic(), {}
    for stage in STAGES:
        if args.stages and stage.name not in args.stages:
            continue
        left = 60 * args.minutes - (time.monotonic() - began)
        print(f"=== {stage.name}: {stage.command}", flush=True)
        limit = min(left, stage.seconds) if args.device == "gpu" else left
        ended[stage.name] = run(stage, args, limit) if left > 10 else "no time"
        log = args.out / f"{stage.name}.log"
        if log.is_file():
            print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-12:]))
        print(f"=== {stage.name}: {ended[stage.name]}", flush=True)
        rows = [{"stage": name, "ended": how} for name, how in ended.items()]
        (args.out / "summary.md").write_text(measure.table(rows) + "\n")
    print((args.out / "summary.md").read_text())
    return 0 if all(how.startswith("done") for how in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
