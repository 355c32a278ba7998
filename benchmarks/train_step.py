"""A training step in PyTorch and in this library: time, memory and share of the peak rate.

    python -m benchmarks.train_step [--part=heads|all] [--malloc default tuned] [--groups 1 2 5 10]

K samples of the Student-t distribution, SAM's mask decoder on each, the loss at full size, the
gradient to the prompt encoder's heads (or through all of it), and AdamW. The outputs of the frozen
image networks are given. Weights, inputs and noise are the same on both sides; the loss and every
gradient of the first step must agree. In lower precision both libraries are compared with PyTorch
in float32; this one may be as far from it as `TOLERANCES` or PyTorch's worst way. Each way to
compute it has its own process (on a GPU they share one), and they take turns. PyTorch takes the
samples one after the other ("loop") or decodes them as one batch ("folded"), with --compiled also
with `torch.compile`. Ratios are to the fastest.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.problem import Problem, to_jax

OUT = pathlib.Path("runs/benchmarks/train_step.json")
SIZES = ("size", "embedding", "samples", "batch", "prompts", "merged", "prior")
# Largest relative differences allowed: of the loss, and of a gradient in L2 norm. A gradient that
# is only rounding, such as a key's bias, is compared with a hundredth of the largest norm.
# In lower precision they are from PyTorch's float32, and hold unless PyTorch itself is that far.
TOLERANCES = {"float32": (1e-5, 1e-3), "tf32": (1e-3, 0.03), "bfloat16": (5e-3, 0.2)}


def make_torch(problem: Problem, how: str, compiled: bool = False, last: bool = False) -> Any:
    """PyTorch's side, in its own process."""
    from benchmarks.torch_side import Predictor, Side

    if problem.part == "evaluation":
        return Predictor(problem, compiled=compiled, channels_last=last)
    return Side(problem, how, compiled=compiled, channels_last=last)


def make_jax(problem: Problem, arrays: Mapping[str, np.ndarray], group: int = 0) -> Any:
    """This library's side, in its own process."""
    from benchmarks.jax_side import Predictor, Side

    if problem.part == "evaluation":
        return Predictor(problem, arrays)
    return Side(problem, arrays, group)


def platform(problem: Problem) -> dict[str, str]:
    """Variables that give JAX the devices of a problem; on a CPU they are simulated."""
    if problem.device == "gpu":
        precision = "highest" if problem.dtype == "float32" else "tensorfloat32"
        return {
            "JAX_PLATFORMS": "cuda",
            "JAX_DEFAULT_MATMUL_PRECISION": precision,  # as in `pytorch.set_up`
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share its memory
        }
    fake = f"--xla_force_host_platform_device_count={problem.devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": fake}


class Sides:
    """All ways to compute a problem, by name, each in its own process; checked to agree.

    Args:
        problem: The problem.
        torch_ways: Arguments of `make_torch` after the problem, by name.
        groups: Values of `distribution.sample_group`, 0 for the default.
        mallocs: Names of `measure.MALLOCS`.
    """

    def __init__(
        self,
        problem: Problem,
        torch_ways: Mapping[str, tuple],
        groups: Sequence[int],
        mallocs: Sequence[str],
    ):
        self.problem = problem
        self.torch: dict[str, measure.Alone | measure.Here] = {}
        self.jax: dict[str, measure.Alone | measure.Here] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        hold = measure.holder(problem.device)
        for malloc in mallocs:
            environment = measure.MALLOCS[malloc] | platform(problem)
            for name, way in torch_ways.items():
                self.torch[f"torch {name}, {malloc}"] = hold(
                    make_torch, problem, *way, environment=environment
                )
            weights = to_jax(problem, next(iter(self.torch.values()))("weights"))
            for group in groups:
                name = f"jax, group {group}" if group else "jax"
                self.jax[f"{name}, {malloc}"] = hold(
                    make_jax, problem, weights, group, environment=environment
                )
        self.all = self.torch | self.jax
        exact: dict[str, measure.Alone | measure.Here] = {}
        if problem.dtype != "float32":
            in_float32 = dataclasses.replace(problem, dtype="float32")
            exact = {"torch in float32": hold(make_torch, in_float32, *way)}
        if problem.part in ("heads", "all"):
            noise = next(iter(self.jax.values()))("noise")
            for side in (exact | self.torch).values():
                side("set_noise", *noise)
        self._check(exact)
        for side in exact.values():
            side.close()

    def _check(self, exact: dict[str, measure.Alone | measure.Here]) -> None:
        """Takes the first step on every side.

        Args:
            exact: PyTorch in float32, if the others compute in lower precision.

        Raises:
            ValueError: A side differs from the first one by more than `TOLERANCES`.
        """
        expected = None
        theirs = [0.0, 0.0]  # PyTorch's largest differences from float32
        most = TOLERANCES[self.problem.dtype]
        for name, side in (exact | self.all).items():
            first = side("first")
            facts = {}
            if name in self.jax:
                wall, cpu = first["timing"]
                facts = {"compilation": f"{wall:.1f} s, CPU {cpu:.1f} s"}
            elif self.problem.part != "evaluation":
                first["grads"] = to_jax(self.problem, first["grads"])
            expected = expected or first
            apart = differences(first, expected)
            loss, grads = apart
            self.facts[name] = facts | {"loss apart": loss, "gradients apart": grads}
            print(
                f"{name}: loss {first['loss']:.6f}, agrees to {loss:.0e}, {grads:.0e}", flush=True
            )
            allowed = most
            if exact:
                if name in self.torch:
                    theirs = [max(x, y) for x, y in zip(theirs, apart, strict=True)]
                    continue
                allowed = [max(x, y) for x, y in zip(most, theirs, strict=True)]
            if not (loss <= allowed[0] and grads <= allowed[1]):
                raise ValueError(
                    f"{name} differs from {next(iter(exact | self.all))}: loss by {loss:.1e} "
                    f"(allowed {allowed[0]:.1e}), gradients by {grads:.1e} (allowed "
                    f"{allowed[1]:.1e})"
                )

    def compare(self, turns: int, peak: float) -> list[dict[str, Any]]:
        """Times every side in turns and returns the rows of a table.

        Args:
            turns: Number of turns.
            peak: The machine's peak FLOP/s.
        """
        cases = {name: lambda side=side: side("timing") for name, side in self.all.items()}
        found = measure.in_turns(cases, turns, lambda n: print(f"turn {n}", flush=True))
        seconds = {name: [x.seconds for x in timings] for name, timings in found.items()}
        cpu = {name: [x.cpu_seconds for x in timings] for name, timings in found.items()}
        work = next(iter(self.torch.values()))("flops")
        rows = []
        for name, values in seconds.items():
            malloc = name.rpartition(", ")[2]
            rivals = [x for x in self.torch if x.endswith(malloc)]
            best = min(rivals, key=lambda x: measure.spread(seconds[x]).median)
            rate = work / measure.spread(values).median
            facts = self.facts[name]
            rows.append(
                {
                    "side": name,
                    "seconds": str(measure.spread(values)),
                    "of PyTorch's best": str(measure.ratio(values, seconds[best])),
                    "CPU seconds": str(measure.spread(cpu[name])),
                    "of its": str(measure.ratio(cpu[name], cpu[best])),
                    "peak GB": self.all[name]("peak") / 1e9,
                    "GFLOP/s": rate / 1e9,
                    "share of peak": rate / peak,
                    "compilation": facts.get("compilation", ""),
                    "loss apart": facts["loss apart"],
                    "gradients apart": facts["gradients apart"],
                }
            )
        return rows

    def close(self) -> None:
        """Ends the processes."""
        for side in self.all.values():
            side.close()


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[float, float]:
    """Relative difference of the losses, and the largest of all gradients."""
    loss = abs(found["loss"] - expected["loss"]) / abs(expected["loss"])
    norms = {name: np.linalg.norm(x) for name, x in expected["grads"].items()}
    least = max(norms.values()) / 100
    apart = [
        np.linalg.norm(found["grads"][name] - x) / max(norms[name], least)
        for name, x in expected["grads"].items()
    ]
    return loss, float(np.max(apart))  # NaN if any is


def parser(text: str | None, out: pathlib.Path) -> argparse.ArgumentParser:
    """The flags shared by the benchmarks of a `Problem`."""
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    made.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    for name in SIZES:
        made.add_argument(f"--{name}", type=int, default=getattr(Problem, name))
    made.add_argument("--malloc", nargs="+", choices=tuple(measure.MALLOCS), default=["default"])
    made.add_argument("--turns", type=int, default=7)
    made.add_argument(
        "--matmul", type=int, default=4096, help="side of the matrices for the peak rate"
    )
    made.add_argument("--out", type=pathlib.Path, default=out)
    return made


def problem_of(args: argparse.Namespace, part: str) -> Problem:
    """The problem that the flags describe; this process uses its device, unless JAX is loaded."""
    sizes = {name: getattr(args, name) for name in (*SIZES, "device", "dtype")}
    problem = Problem(part=part, **sizes)
    if "jax" not in sys.modules:
        os.environ.update(platform(problem))
    return problem


def report(args: argparse.Namespace, sides: Sides) -> None:
    """Measures, prints the table and writes the result."""
    rate = measure.matmul(args.dtype, args.matmul, 1 if args.device == "cpu" else 20)
    peak = max(rate() for _ in range(5))
    with contextlib.closing(sides):
        rows = sides.compare(args.turns, peak)
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s", measure.table(rows), sep="\n")
    measure.write(
        args.out, {"settings": measure.settings(args), "matmul FLOP/s": peak, "rows": rows}
    )


def main() -> None:
    """Measures and writes."""
    flags = parser(__doc__, OUT)
    flags.add_argument("--part", choices=("heads", "all"), default="heads")
    flags.add_argument("--groups", type=int, nargs="+", default=[0], help="0 is the default")
    flags.add_argument("--compiled", action="store_true", help="also with torch.compile")
    args = flags.parse_args()
    ways: dict[str, tuple] = {"folded": ("folded",), "loop": ("loop",)}
    if args.compiled:
        ways["folded, compiled"] = ("folded", True)
    report(args, Sides(problem_of(args, args.part), ways, args.groups, args.malloc))


if __name__ == "__main__":
    main()
