"""Sweeps: many runs, several at a time in processes.

Each run is a `methods.Run` with a folder of its own, so that a sweep can be resumed.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue

import rich.progress
from absl import logging

from prosam_jax import console
from prosam_jax.comparison import methods
from prosam_jax.comparison.methods import Run
from prosam_jax.errors import UserError
from prosam_jax.report import curves
from prosam_jax.training import signals

PATIENCE = 60
"""Seconds after which a process that was told to stop and has saved ends by itself."""


def finish(todo: Sequence[Run], *, jobs: int) -> None:
    """Finishes the runs, `jobs` at a time, each in a process with its share of the cores.

    Stderr shows a bar for each active run, if it is a terminal, and a line for each finished one.
    The output of a run goes to `log.txt` in its folder.

    Args:
        todo: The runs.
        jobs: How many to do at a time.

    Raises:
        UserError: A run failed (raised when all others are done), or a process was killed (raised
            at once; active runs are saved).
        SystemExit: SIGTERM or SIGHUP was received; active runs are saved.
        KeyboardInterrupt: Ctrl-C was pressed; active runs are saved.
    """
    began, done, failed = time.monotonic(), 0, dict[Run, Exception]()
    try:
        with signals.heard(), _Bars() as bars, _pool(jobs) as pool:
            for run, future in _ended(pool, todo, jobs, bars):
                try:
                    miou, seconds = future.result()
                    told = f"mIoU {miou:.2f} in {console.clock(seconds)}"
                except (BrokenProcessPool, _Told):
                    raise
                except Exception as error:
                    failed[run] = error
                    told = f"failed: {error}"
                done += 1
                left = (time.monotonic() - began) / done * (len(todo) - done)
                rest = f", {console.clock(left)} left" if done < len(todo) else ""
                bars.print(f"{run.workdir.name}: {told}; {done} of {len(todo)}{rest}")
    except (BrokenProcessPool, _Told):
        raise UserError(
            f"{len(todo) - done} of {len(todo)} runs were not finished, because one of their "
            "processes was killed (if memory ran out, use fewer --jobs); run the same command "
            "again to resume"
        ) from None
    for run, error in failed.items():
        if not isinstance(error, UserError):  # a bug keeps its traceback
            raise error
        more = f" ({len(failed) - 1} more failed, see above)" if len(failed) > 1 else ""
        raise UserError(f"{run.workdir}: {error}{more}")


def default_jobs(runs: Sequence[Run]) -> int:
    """How many runs to do at a time: one on each device, or on each core of a CPU."""
    import jax

    if jax.default_backend() == "cpu":
        return max(1, min(len(runs), len(cores())))
    return max(1, min(len(runs), jax.local_device_count()))


def devices() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import jax

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if jax.default_backend() != "gpu":
        return []
    return given.split(",") if given else [str(x.local_hardware_id) for x in jax.local_devices()]


def cores() -> list[int]:
    """The CPU cores that this process may use; empty if the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class _Bars:
    """A bar for each active run, from the curves that it writes; none without a terminal."""

    def __init__(self) -> None:
        self._bars = console.training_bars(console.stderr())
        self._tasks: dict[Run, rich.progress.TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, run: Run) -> None:
        steps = run.cfg.train.steps or None
        self._tasks[run] = self._bars.add_task(run.workdir.name, total=steps, text="")

    def end(self, run: Run) -> None:
        self._bars.remove_task(self._tasks.pop(run))

    def print(self, line: str) -> None:
        self._bars.console.print(line)

    def refresh(self) -> None:
        for run, task in self._tasks.items():
            # There is no file yet; and a run itself tells what is wrong with it.
            with contextlib.suppress(OSError, UserError):
                values = curves.newest(run.workdir)
                if values:
                    text = f"loss {values['train/loss']:.4f}  mIoU {100 * values['train/miou']:.1f}"
                    text += ", scoring" if values["step"] == run.cfg.train.steps else ""
                    self._bars.update(task, completed=values["step"], text=text)


def _ended(
    pool: ProcessPoolExecutor, todo: Sequence[Run], jobs: int, bars: _Bars
) -> Iterator[tuple[Run, Future[tuple[float, float]]]]:
    """Submits runs to the pool as processes become free; yields each run when it has ended."""
    waiting, under_way = iter(todo), dict[Future[tuple[float, float]], Run]()
    while True:
        # Submit no more than there are processes, so that every submitted run is active.
        for run in itertools.islice(waiting, jobs - len(under_way)):
            under_way[pool.submit(_finish, run)] = run
            bars.begin(run)
        if not under_way:
            return
        for future in wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED).done:
            run = under_way.pop(future)
            bars.end(run)
            yield run, future
        bars.refresh()


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, each with its share of cores and GPUs; an error tells them to stop."""
    if jobs > 1:  # where they share a GPU, JAX would give most of its memory to the first one
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    spawn = multiprocessing.get_context("spawn")
    known, shares = (cores(), devices()) if jobs > 1 else ([], []), spawn.SimpleQueue()
    for job in range(jobs):
        shares.put(_share(*known, job, jobs))
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, spawn, _begin, (shares,)) as pool:
        try:
            yield pool
        except BrokenProcessPool:  # the pool has terminated them already
            raise
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


# The rest runs in the processes. A process that SIGTERM tells to stop must not exit at once: the
# pool would consider it killed and send the others a second SIGTERM while they write their last
# checkpoint. It returns its run instead and ends with the pool.

_busy = False
_told = False


class _Told(Exception):
    """A process was told to stop while it had a run; the run is saved."""


def _share(
    cores: Sequence[int], devices: Sequence[str], job: int, jobs: int
) -> tuple[list[int], str]:
    """Cores and GPUs of one of several processes; with fewer GPUs than processes they share."""
    own = devices[job::jobs] or [devices[job % len(devices)]] if devices else []
    return list(cores[job::jobs]), ",".join(own)


def _begin(shares: "SimpleQueue[tuple[list[int], str]]") -> None:
    """Prepares a process of the pool, before it uses JAX."""
    signal.signal(signal.SIGTERM, _stop)
    for number in set(signals.ENDING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)  # they also reach the main process, which tells us
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    own_cores, own_devices = shares.get()
    if own_cores:
        os.sched_setaffinity(0, own_cores)
    if own_devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = own_devices
    logging.set_verbosity(logging.ERROR)  # as `prosam_jax.cli` does


def _stop(number: int, frame: types.FrameType | None) -> None:
    """Handles SIGTERM, except in a training, which handles it itself and saves."""
    again = _told
    _be_told()
    if _busy and not again:
        raise SystemExit


def _be_told() -> None:
    global _told
    _told = True
    signal.alarm(PATIENCE)  # in case the pool is broken and cannot end this process


def _stop_with_parent() -> None:
    """Stops this process if the main process is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _finish(run: Run) -> tuple[float, float]:
    """Finishes a run and returns its mIoU in percent and the duration in seconds.

    Raises:
        _Told: This process was told to stop; the run is saved.
        UserError: The run failed.
    """
    global _busy
    start, _busy = time.monotonic(), True
    try:
        if _told:
            raise SystemExit
        run.workdir.mkdir(parents=True, exist_ok=True)
        with (
            (run.workdir / "log.txt").open("a", buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            return methods.finish(run)["miou"], time.monotonic() - start
    except (signals.Stopped, SystemExit):
        _be_told()
        raise _Told from None
    except (UserError, FloatingPointError, OSError) as error:
        raise UserError(str(error)) from error
    finally:
        _busy = False
