"""Timing of alternatives against each other, and a record of the measurement and its machine.

The alternatives take turns within a run, so that other load on the machine affects all of them.
Ratios are taken within each turn.
"""

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil

T = TypeVar("T")

PACKAGES = (
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "numpy",
    "pillow",
    "prosam_jax",
    "segment_anything",
    "torch",
)
# glibc keeps freed memory instead of returning it, so that it need not be paged in again.
TUNED = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_MAX_": "0",
}
CALLS = {"cpu": 1, "gpu": 5}
"""Calls of a turn: a GPU does one in milliseconds."""
MALLOCS: dict[str, dict[str, str]] = {"default": {}, "tuned": TUNED}


class Spread(NamedTuple):
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.lower:.3g}-{self.upper:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    return Spread(*np.quantile(values, (0.5, 0.25, 0.75)).tolist())


class Timing(NamedTuple):
    """Wall time of a call, and CPU time of all threads of this process."""

    seconds: float
    cpu_seconds: float


def timed(call: Callable[[], Any], calls: int = 1) -> Timing:
    """The time of a call, which must wait for its result; the mean if it is called repeatedly."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    return Timing((time.perf_counter() - start) / calls, (time.process_time() - cpu) / calls)


def in_turns(
    cases: Mapping[str, Callable[[], T]], turns: int, on_turn: Callable[[int], None]
) -> dict[str, list[T]]:
    """Measures every case once per turn; every second turn goes backwards.

    Args:
        cases: Each measures itself once and returns the result, such as seconds or a rate. Call a
            case that compiles once before.
        turns: How often.
        on_turn: Called with the number of turns done so far.

    Returns:
        The results of each case, in order of the turns.
    """
    figures: dict[str, list[T]] = {name: [] for name in cases}
    for turn in range(turns):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            figures[name].append(cases[name]())
        on_turn(turn + 1)
    return figures


def ratio(figures: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Median and quartiles of the ratios within each turn."""
    return spread([a / b for a, b in zip(figures, baseline, strict=True)])


def use_malloc(name: str) -> None:
    """Restarts this program with the allocator settings `MALLOCS[name]`, unless they are set."""
    wanted = MALLOCS[name]
    if any(os.environ.get(variable) != value for variable, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


class Alone:
    """An object in its own process, with its own peak memory and allocator.

    Args:
        make: Makes the object; a function at the top of a module. The process imports what that
            module imports, so to compare memory, import libraries inside such functions.
        *arguments: Arguments of `make`.
        environment: Variables for the process, in addition to this one's.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ):
        self._pool = concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        )
        before = dict(os.environ)
        os.environ.update(environment or {})
        try:  # the first task starts the process
            self._pool.submit(_make, make, *arguments).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the object and returns its result."""
        return self._pool.submit(_call, method, *arguments).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


class Here:
    """An `Alone` in this process, for GPUs: there, a process more costs 10 s and measures the same.

    Arguments are those of `Alone`; the environment stays as it is.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ):
        del environment
        self._object = make(*arguments)

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the object and returns its result."""
        return getattr(self._object, method)(*arguments)

    def close(self) -> None:
        """Lets go of the object."""
        self._object = None


def holder(device: str) -> type[Alone] | type[Here]:
    """What holds the sides of a comparison on a "cpu" or "gpu"."""
    return Here if device == "gpu" else Alone


_held: list[Any] = []  # in the process of an `Alone`: its object


def _make(make: Callable[..., Any], *arguments: Any) -> None:
    _held.append(make(*arguments))


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_held[0], method)(*arguments)


def matmul(dtype: str, size: int = 4096, count: int = 1) -> Callable[[], float]:
    """A case for `in_turns`: FLOP/s of a product of square matrices, the machine's practical peak.

    Args:
        dtype: Type of the matrices and of the result; float32 is computed in full precision,
            unless it is "tf32".
        size: Their side.
        count: Products in a row; more than one if launching takes long compared with a product.
    """
    from prosam_jax import platforms

    precision, dtype = ("tensorfloat32", "float32") if dtype == "tf32" else ("highest", dtype)
    return platforms.matmul(dtype, size, count, precision)


def cpu_seconds() -> float:
    """CPU time so far of this process and of its running children."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(x.user + x.system for x in times)


def peak_memory() -> dict[str, int]:
    """Peak bytes so far: of this process, of its largest finished child, and of each device."""
    import jax

    unit = 1 if platform.system() == "Darwin" else 1024
    peaks = {
        "process": process_peak(),
        "largest child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit,
    }
    for device in jax.local_devices():
        if statistics := device.memory_stats():  # CPUs have none
            peaks[str(device)] = statistics["peak_bytes_in_use"]
    return peaks


def process_peak() -> int:
    """Peak bytes of main memory that this process has used."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():  # here getrusage includes the peak of the parent process
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as a Markdown table; floats have three digits."""
    cells = [list(rows[0])] + [
        [f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(x.ljust(n) for x, n in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (n + 2) for n in widths) + "|", *lines[1:]])


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def surroundings() -> dict[str, Any]:
    """Date, versions, devices and load of the machine."""
    import jax

    installed = {x.name: x.version for x in importlib.metadata.distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in PACKAGES if name in installed},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": platform.machine(),
        "cores": cores(),
        "load": os.getloadavg()[0],
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The command line as part of a result, with paths as text."""
    return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()}


def write(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes a result and its surroundings as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(surroundings() | dict(result), indent=2) + "\n")
    print(f"wrote {path}")
