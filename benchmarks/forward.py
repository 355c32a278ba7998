"""Forward passes of PyTorch and of this library in turns.

A side is one library with one allocator. On a CPU each has its own process. Libraries are imported
inside functions, so that each process loads only its own, and its peak memory is that library's.
On a GPU all share one process, and each library's allocator knows its own memory.
"""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure

OUT = pathlib.Path("runs/benchmarks")
SEED = 0
# Largest difference allowed between the libraries, over the largest value.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
MATMUL = {"cpu": (4096, 1), "gpu": (8192, 20)}  # side and count, a second or less in float32


class Network(NamedTuple):
    """What is compared: functions of a module, called in the process of a side.

    Attributes:
        name: Name of the file of results.
        torch_side: (args, dtype, variant) -> `pytorch.Forward`.
        our_side: (args, file of weights, variant) -> `ours.Forward`.
        write: (args, file of weights): converts PyTorch's weights and writes them.
        variants: Ways in which this library computes it.
        torch_flops: PyTorch's operations for one image; None to count those of its forward pass.
        our_flops: This library's operations for one image; None for PyTorch's count.
    """

    name: str
    torch_side: Callable[..., Any]
    our_side: Callable[..., Any]
    write: Callable[..., None]
    variants: Sequence[str] = ("",)
    torch_flops: int | None = None
    our_flops: int | None = None


class Side(NamedTuple):
    """A library, its type of numbers and its allocator; `ask` calls its process."""

    library: str
    dtype: str
    malloc: str
    ask: measure.Alone | measure.Here

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.library}, {self.dtype}, malloc {self.malloc}"

    @property
    def is_ours(self) -> bool:
        """Whether it is this library."""
        return self.library.startswith("prosam_jax")


def parser(doc: str | None, variants: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments of all forward passes; `variants` are PyTorch's on a CPU."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--batch", type=int, nargs="+", default=[1], help="one or several")
    made.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    made.add_argument("--turns", type=int, default=5)
    made.add_argument("--matmul", type=int, help="side of the matrices for the peak rate")
    made.add_argument(
        "--malloc",
        nargs="+",
        choices=tuple(measure.MALLOCS),
        default=["default"],
        help="tuned: glibc keeps freed memory; give one or both",
    )
    made.add_argument(
        "--torch",
        nargs="+",
        default=variants,
        metavar="VARIANT",
        help="eager, sdpa, channels_last, compile or compile_blocks",
    )
    made.add_argument("--out", type=pathlib.Path, help=f"JSON, in {OUT} by default")
    return made


def images(args: argparse.Namespace, batch: int) -> np.ndarray:
    """Random normalised images."""
    shape = (batch, args.size, args.size, 3)
    return np.random.default_rng(SEED).standard_normal(shape, np.float32)


def run(network: Network, args: argparse.Namespace) -> dict[str, Any]:
    """Compares outputs, measures, prints tables and writes everything.

    Returns:
        What is written: settings, peak rates, and the results of each batch size.

    Raises:
        ValueError: The libraries' outputs differ by more than `TOLERANCE`.
    """
    # For this process and those of the sides, which share the GPU.
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[args.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    matmuls = open_matmuls(args)
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "batches": {},
    }
    out = args.out or OUT / f"{network.name}.json"
    with tempfile.TemporaryDirectory() as temporary:
        file = os.path.join(temporary, "weights.safetensors")
        measure.holder(args.device)(network.write, args, file).close()
        for batch in args.batch:
            sides = list(open_sides(network, args, batch, file))
            result["batches"][batch] = measured(network, args, batch, sides, matmuls)
            for side in sides:
                side.ask.close()
            measure.write(out, result)  # after each batch size, in case the next does not end
    for ask in matmuls.values():
        ask.close()
    return result


def measured(
    network: Network,
    args: argparse.Namespace,
    batch: int,
    sides: Sequence[Side],
    matmuls: Mapping[str, measure.Alone | measure.Here],
) -> dict[str, Any]:
    """The comparison for one batch size, printed as a table."""
    difference = check(sides, args.dtype)
    flops = {}
    for side in sides:
        given = network.our_flops if side.is_ours else network.torch_flops
        flops[side.name] = batch * given if given else sides[0].ask("flops")
    cases: dict[str, Callable[[], Any]] = {
        side.name: lambda side=side: side.ask("timing") for side in sides
    }
    cases |= {name: lambda ask=ask: ask("__call__") for name, ask in matmuls.items()}
    figures = measure.in_turns(cases, args.turns, lambda n: print(f"turn {n}", flush=True))
    peaks = [max(rates) for rates in zip(*(figures[name] for name in matmuls), strict=True)]
    found = {side.name: summary(side, figures, sides, flops[side.name], peaks) for side in sides}
    print(f"batch {batch}, matmul peak: {measure.spread(peaks)} FLOP/s")
    print(measure.table([row(name, x) for name, x in found.items()]), flush=True)
    return {
        "largest difference": difference,
        "matmul FLOP/s": {name: measure.spread(figures[name])._asdict() for name in matmuls},
        "sides": found,
    }


def open_sides(network: Network, args: argparse.Namespace, batch: int, file: str) -> Iterator[Side]:
    """PyTorch in every variant, and this library, with every allocator; PyTorch's float32 first."""
    dtypes = ["float32"] if args.dtype == "float32" else ["float32", args.dtype]
    hold = measure.holder(args.device)
    for malloc in args.malloc:
        environment = measure.MALLOCS[malloc]
        for dtype in dtypes:
            variants = args.torch if dtype == args.dtype else ["eager"]
            for variant in variants:
                ask = hold(network.torch_side, args, batch, dtype, variant, environment=environment)
                yield Side(f"PyTorch {variant}", dtype, malloc, ask)
        for variant in network.variants:
            ask = hold(network.our_side, args, batch, file, variant, environment=environment)
            yield Side(f"prosam_jax {variant}".strip(), args.dtype, malloc, ask)


def open_matmuls(args: argparse.Namespace) -> dict[str, measure.Alone | measure.Here]:
    """Both libraries' matrix products; the faster one is the peak."""
    size, count = args.matmul or MATMUL[args.device][0], MATMUL[args.device][1]
    environment, hold = measure.TUNED, measure.holder(args.device)
    return {
        "matmul PyTorch": hold(
            torch_matmul, args.device, args.dtype, size, count, environment=environment
        ),
        "matmul JAX": hold(measure.matmul, args.dtype, size, count, environment=environment),
    }


def torch_matmul(*arguments: Any) -> Callable[[], float]:
    """`pytorch.matmul`, imported where it runs."""
    from benchmarks import pytorch

    return pytorch.matmul(*arguments)


def check(sides: Sequence[Side], dtype: str) -> dict[str, float]:
    """Every side's largest difference from the first side's outputs, over their largest value."""
    wanted = sides[0].ask("outputs")
    differences = {}
    for side in sides[1:]:
        found = side.ask("outputs")
        apart = [np.abs(x - y).max() / np.abs(y).max() for x, y in zip(found, wanted, strict=True)]
        differences[side.name] = float(np.max(apart))  # NaN if any is
        print(f"largest difference of {side.name}: {differences[side.name]:.1e}", flush=True)
        if not differences[side.name] <= TOLERANCE[dtype]:
            raise ValueError(
                f"{side.name} differs from {sides[0].name} by {differences[side.name]:.1e} of the "
                f"largest value, more than {TOLERANCE[dtype]:.0e}"
            )
    return differences


def summary(
    side: Side,
    figures: Mapping[str, Sequence[measure.Timing]],
    sides: Sequence[Side],
    flops: int,
    peaks: Sequence[float],
) -> dict[str, Any]:
    """The results of a side. Ratios are to the fastest PyTorch with its allocator in each turn."""
    seconds = [x.seconds for x in figures[side.name]]
    others = [
        [turn.seconds for turn in figures[x.name]]
        for x in sides
        if not x.is_ours and (x.dtype, x.malloc) == (side.dtype, side.malloc)
    ]
    fastest = [min(turn) for turn in zip(*others, strict=True)]
    rates = [flops / x for x in seconds]
    compiling = side.ask("compiling") if side.is_ours else None
    return {
        "seconds": measure.spread(seconds)._asdict(),
        "CPU seconds": measure.spread([x.cpu_seconds for x in figures[side.name]])._asdict(),
        "over PyTorch": measure.ratio(seconds, fastest)._asdict(),
        "FLOP": flops,
        "FLOP/s": measure.spread(rates)._asdict(),
        "share of matmul peak": measure.ratio(rates, peaks)._asdict(),
        "peak bytes": side.ask("peak"),
        "compile seconds": compiling,
    }


def row(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    compiling = summary["compile seconds"]
    return {
        "": name,
        "seconds": measure.Spread(**summary["seconds"]),
        "CPU seconds": measure.Spread(**summary["CPU seconds"]),
        "over PyTorch": measure.Spread(**summary["over PyTorch"]),
        "GFLOP": round(summary["FLOP"] / 1e9),
        "GFLOP/s": summary["FLOP/s"]["median"] / 1e9,
        "share of peak": measure.Spread(**summary["share of matmul peak"]),
        "peak GB": summary["peak bytes"] / 1e9,
        "compile s": "" if compiling is None else compiling,
    }
