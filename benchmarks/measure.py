"""Timing of alternatives against each other, and a record of what was measured on which machine.

The alternatives take turns within a run, so that whatever else the machine does hits all of them,
and what is compared is the ratio within each turn.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import psutil

T = TypeVar("T")

PACKAGES = ("flax", "grain", "jax", "jaxlib", "numpy", "pillow", "prosam_jax", "torch")


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


def in_turns(
    cases: Mapping[str, Callable[[], T]], turns: int, on_turn: Callable[[int], None]
) -> dict[str, list[T]]:
    """Measures every case once a turn, forwards and backwards by turns.

    Args:
        cases: Each measures itself once and returns what it found, such as seconds or a rate. One
            that compiles should be called once before.
        turns: How often.
        on_turn: Called with the number of turns done so far.

    Returns:
        What each case found, in order of the turns.
    """
    figures: dict[str, list[T]] = {name: [] for name in cases}
    for turn in range(turns):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            figures[name].append(cases[name]())
        on_turn(turn + 1)
    return figures


def ratio(figures: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Of the ratios within each turn."""
    return spread([a / b for a, b in zip(figures, baseline, strict=True)])


def cpu_seconds() -> float:
    """CPU time so far of this process and of its children that still run."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(x.user + x.system for x in times)


def peak_memory() -> dict[str, int]:
    """Peak bytes so far: of this process, of its largest ended child, and of each device."""
    unit = 1 if platform.system() == "Darwin" else 1024
    peaks = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "largest child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit,
    }
    for device in jax.local_devices():
        if statistics := device.memory_stats():  # CPUs have none
            peaks[str(device)] = statistics["peak_bytes_in_use"]
    return peaks


def surroundings() -> dict[str, Any]:
    """Date, versions, devices and load of the machine."""
    installed = {x.name: x.version for x in importlib.metadata.distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in PACKAGES if name in installed},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def write(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Keeps a result and its surroundings as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(surroundings() | dict(result), indent=2) + "\n")
    print(f"wrote {path}")
