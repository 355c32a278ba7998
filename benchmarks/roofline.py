"""What bounds a training step on a CPU: products, memory traffic and functions such as exp.

    python -m benchmarks.roofline [--embedding 16 --size 128]

Counts are XLA's own for the compiled step. It counts the loop over groups of samples once, so the
step is compiled for one group, and all is multiplied by the number of groups. Bytes are what the
kernels read and write, wherever that lies. Rates are those of products of large matrices, of an
addition to an array that fits no cache, and of exp and erf (the slower one counts) on one that fits
the second-level cache; best of five.
"""

import argparse
import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_side, measure
from benchmarks.problem import Problem, parts
from prosam_jax import platforms
from prosam_jax.weights import files

OUT = pathlib.Path("runs/benchmarks/roofline.json")


def traffic(size: int) -> float:
    """Bytes read and written per second by an addition to `size` numbers, in place."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(add(jnp.zeros(size)))
    start = time.perf_counter()
    jax.block_until_ready(add(x))
    return 2 * 4 * size / (time.perf_counter() - start)


def functions(size: int, repeats: int = 100) -> float:
    """Values per second of exp or erf, whichever is slower, for `size` numbers."""
    rates = []
    for function in (jnp.exp, jax.lax.erf):
        repeat = jax.jit(lambda x, f=function: jax.lax.fori_loop(0, repeats, lambda _, y: f(-y), x))
        x = jax.block_until_ready(repeat(jnp.linspace(0, 1, size)))
        start = time.perf_counter()
        jax.block_until_ready(repeat(x))
        rates.append(repeats * size / (time.perf_counter() - start))
    return min(rates)


def step(problem: Problem) -> jax_side.Side:
    """The training step with random weights."""
    weights = {
        f"{part}.{name}": np.asarray(x)
        for part, build in parts(problem).items()
        for name, x in files.leaves(files.random(build, 0)).items()
    }
    return jax_side.Side(problem, weights)


def bounds(problem: Problem, matrix: int, numbers: int) -> dict[str, Any]:
    """Counts, rates and times, in seconds."""
    group = min(problem.samples, platforms.SAMPLES)
    groups = problem.samples / group
    counts = step(dataclasses.replace(problem, samples=group)).step.cost_analysis()
    whole = step(problem)
    product = measure.matmul("float32", matrix)
    flops, size, calls = (
        groups * counts[name] for name in ("flops", "bytes accessed", "transcendentals")
    )
    whole.loss()
    seconds, products, copies, rates = [], [], [], []
    for _ in range(5):
        seconds.append(whole.timing().seconds)
        products.append(product())
        copies.append(traffic(numbers))
        rates.append(functions(min(numbers, 2**17)))
    return {
        "FLOP": flops,
        "bytes": size,
        "transcendentals": calls,
        "matmul FLOP/s": max(products),
        "copy bytes/s": max(copies),
        "exp or erf/s": max(rates),
        "seconds of products": flops / max(products),
        "seconds of traffic": size / max(copies),
        "seconds of exp and erf": calls / max(rates),
        "measured seconds": measure.spread(seconds)._asdict(),
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("size", "embedding", "samples", "batch"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Problem, name))
    parser.add_argument("--matmul", type=int, default=4096, help="side of the matrices")
    parser.add_argument("--numbers", type=int, default=2**26, help="size of the array")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in ("size", "embedding", "samples", "batch")}
    found = bounds(Problem(**sizes), args.matmul, args.numbers)
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n")
    measure.write(args.out, {"settings": measure.settings(args)} | found)


if __name__ == "__main__":
    main()
