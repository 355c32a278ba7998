"""Batches of episodes in the order of training steps, read ahead by threads or processes.

Grain reads them; what is added here is that a reader that is killed, stopped or hanging ends the
wait in one line, and that the main process hears signals while it waits.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import queue
import re
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.shared_memory import SharedMemory

import grain
import numpy as np
from absl import flags

from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.processes import begin_worker
from prosam_jax.errors import UserError
from prosam_jax.types import Episode

_START = 5
"""How many times as long the first episode may take: packages are imported, maybe from afar."""

_UNHEARD = tuple(x for x in signal.Signals if x.name in ("SIGTERM", "SIGHUP", "SIGINT"))
"""Signals of a whole job or terminal, which the main process hears, and its workers do not."""

_POLL = 0.2
"""Seconds between two looks at signals while waiting."""

_CLOSING = 5.0
"""Seconds in which workers end by themselves when they are told to; those that hang do not."""


def make_loader(
    source: EpisodeSource,
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    patience: float = 50,
    on_wait: Callable[[], object] = lambda: None,
) -> "Loader":
    """Batches of steps `start` to `stop`; close the iterator after use.

    A batch depends only on `source`, `batch_size` and its step, not on the number of workers or on
    where a run was resumed. Each host reads its own part of each batch; concatenated in the order
    of the hosts, the parts make up the batch. A short last batch is padded with the last episode,
    not `valid`.

    Args:
        source: The episodes.
        batch_size: Episodes in a batch, over all hosts.
        start: First step.
        stop: Step to stop before; None to read to the end of the source.
        workers: Processes that read; 0 reads in threads of this process. Worker processes import
            the main script again, so it needs `if __name__ == "__main__"`.
        host: Number of this host.
        hosts: Number of hosts that share the batches.
        patience: Seconds to wait for the next episode before the reading counts as hanging.
        on_wait: Called several times a second while a batch is waited for; may raise.

    Raises:
        UserError: `batch_size` is not a multiple of `hosts`, or the source has too few batches.
            The iterator raises it for a file that cannot be read, and for a reader that was
            killed, stopped or hangs.
    """
    if batch_size % hosts:
        raise UserError(
            f"batch_size={batch_size} does not divide evenly among {hosts} hosts; "
            f"choose a multiple of {hosts}"
        )
    steps = -(-len(source) // batch_size)
    stop = steps if stop is None else stop
    if not 0 <= start <= stop <= steps:
        raise UserError(f"steps {start} to {stop} must lie within the {steps} steps of the source")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which not every caller parses
    pulse = _Pulse(workers)
    part = _HostPart(source, batch_size, start, stop, host, hosts, pulse)
    dataset = grain.MapDataset.source(part).batch(batch_size // hosts, batch_fn=_stack)
    # More threads than cores slow worker processes down, because they compete for the GIL.
    threads = min(4, max(1, (os.cpu_count() or 1) // workers)) if workers else 4
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    begin = functools.partial(_begin, pulse)
    batches = dataset.to_iter_dataset(reading).mp_prefetch(processes, begin)
    return Loader(iter(batches), start, pulse, patience, on_wait)


class Loader(Iterator[Episode]):
    """Batches from `make_loader`; close it after use."""

    def __init__(
        self,
        batches: grain.DatasetIterator[Episode],
        step: int,
        pulse: "_Pulse",
        patience: float,
        on_wait: Callable[[], object],
    ):
        self._batches, self._step, self._pulse = batches, step, pulse
        self._taken, self._closed = 0, False
        self._patience, self._on_wait = patience, on_wait
        self._asked = queue.SimpleQueue[bool]()
        self._answers = queue.SimpleQueue[tuple[Episode | None, BaseException | None]]()
        # Grain waits without end for a process that is stopped, so that a thread waits for Grain.
        self._thread = threading.Thread(target=self._read, name="loader", daemon=True)
        self._thread.start()

    def __next__(self) -> Episode:
        self._asked.put(True)
        batch, error = self._wait()
        if error is not None:
            lost = isinstance(error, RuntimeError) and _LOST.search(str(error))
            raise UserError(self._killed(int(lost[1]))) if lost else error
        assert batch is not None
        self._taken += 1
        return batch

    def _read(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Handed on to the processes that Grain starts from here: a terminal's Ctrl-C goes to
            # them, too, and would end them before `_begin` is reached.
            signal.pthread_sigmask(signal.SIG_BLOCK, _UNHEARD)
        while self._asked.get():
            try:
                self._answers.put((next(self._batches), None))
            except Exception as error:  # raised where the batch is wanted
                self._answers.put((None, error))

    def _wait(self) -> tuple[Episode | None, BaseException | None]:
        """The next answer of the thread; UserError when no episode was read for too long."""
        waited, beats = 0.0, self._pulse.beats(self._taken)
        while True:
            try:
                return self._answers.get(timeout=_POLL)
            except queue.Empty:
                self._on_wait()
            # Counted, not measured: a computer that slept or a Ctrl-Z is not a reader that hangs.
            waited += _POLL
            if (now := self._pulse.beats(self._taken)) != beats:
                waited, beats = 0.0, now
            if waited >= self._patience and (
                beats or waited >= self._patience * _START or self._is_stopped()
            ):
                raise UserError(self._hanging(waited))

    def _name(self) -> str:
        workers = self._pulse.workers
        if not workers:
            return "the loader"
        pid = self._pulse.pid(self._taken)
        began = f"process {pid}" if pid else "which has not begun"
        return f"loader worker {self._taken % workers + 1} of {workers} ({began})"

    def _killed(self, status: int) -> str:
        named = [x.name for x in signal.Signals if x == -status]
        how = f"was killed by {named[0]}" if named else f"ended with status {status}"
        return (
            f"{self._name()} {how} while the batch of step {self._step + self._taken + 1} was read:"
            " if memory ran out, use fewer data.workers or a smaller batch"
        )

    def _hanging(self, waited: float) -> str:
        state = "is stopped (as by SIGSTOP) and" if self._is_stopped() else "hangs: it"
        return (
            f"{self._name()} {state} has read no episode for {waited:.0f} s, at the batch of step "
            f"{self._step + self._taken + 1}: see whether the disk of data.root answers, or raise "
            "data.patience if it is only slow"
        )

    def _is_stopped(self) -> bool:
        pid = self._pulse.pid(self._taken)
        return pid != 0 and _is_stopped(pid)

    def close(self) -> None:
        """Ends the reading, and the processes within a few seconds, whatever state they are in."""
        if self._closed:
            return
        self._closed = True
        self._asked.put(False)
        killer = threading.Timer(_CLOSING, self._pulse.kill)
        killer.daemon = True
        killer.start()
        if self._pulse.any_stopped():
            self._pulse.kill()
        try:
            self._batches.close()
            self._thread.join(_CLOSING)
        finally:
            killer.cancel()
            self._pulse.close()


_LOST = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
"""What Grain says of a process that has ended."""


def _is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a debugger; False where Linux does not tell."""
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] in "Tt"
    return False


class _Pulse:
    """Process number and a count of episodes of each worker, which the main process looks at.

    Without workers the count is kept in this process.
    """

    def __init__(self, workers: int):
        self.workers = workers
        size = 16 * max(workers, 1)
        self._shared = SharedMemory(create=True, size=size) if workers else None
        self._cells = (self._shared and self._shared.buf) or memoryview(bytearray(size))

    def __getstate__(self) -> tuple[int, SharedMemory | None]:
        return self.workers, self._shared

    def __setstate__(self, state: tuple[int, SharedMemory | None]) -> None:
        self.workers, self._shared = state
        assert self._shared and self._shared.buf
        self._cells = self._shared.buf

    def begin(self) -> None:
        """Called in a worker."""
        struct.pack_into("q", self._cells, 16 * _worker, os.getpid())

    def beat(self) -> None:
        """Called for each episode, by several threads: what counts is that the number changes."""
        count = self.beats(_worker)
        struct.pack_into("q", self._cells, 16 * _worker + 8, count + 1)

    def pid(self, batch: int) -> int:
        """The process that reads a batch; 0 before it has begun."""
        return struct.unpack_from("q", self._cells, 16 * (batch % max(self.workers, 1)))[0]

    def beats(self, batch: int) -> int:
        """Episodes read so far by the one that reads a batch."""
        return struct.unpack_from("q", self._cells, 16 * (batch % max(self.workers, 1)) + 8)[0]

    def any_stopped(self) -> bool:
        """Whether a worker is stopped, so that it does not end when it is told to."""
        return any(_is_stopped(pid) for x in range(self.workers) if (pid := self.pid(x)))

    def kill(self) -> None:
        """Kills the workers that have not ended."""
        pids = {self.pid(x) for x in range(self.workers)}
        for process in multiprocessing.active_children():
            if process.pid in pids:
                process.kill()

    def close(self) -> None:
        """Frees the shared memory."""
        if self._shared:
            self._cells = memoryview(bytearray(16 * self.workers))
            self._shared.close()
            with contextlib.suppress(FileNotFoundError):
                self._shared.unlink()


_worker = 0
"""Number of this process among the workers."""


def _begin(pulse: _Pulse, worker: int, workers: int) -> None:
    """Prepares a worker: the main process decides when it ends, and it ends with that.

    A terminal sends Ctrl-C and SIGHUP to all of its processes, a scheduler SIGTERM to all of a job.
    """
    global _worker
    _worker = worker
    begin_worker()
    for number in _UNHEARD:
        signal.signal(number, signal.SIG_IGN)
    pulse.begin()


@dataclasses.dataclass(frozen=True)
class _HostPart:
    """The episodes of one host, in the order in which it reads them."""

    source: EpisodeSource
    batch_size: int
    start: int
    stop: int
    host: int
    hosts: int
    pulse: _Pulse

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.batch_size // self.hosts)

    def __getitem__(self, index: int) -> Episode:
        share = self.batch_size // self.hosts
        step, offset = divmod(index, share)
        wanted = (self.start + step) * self.batch_size + self.host * share + offset
        last = len(self.source) - 1
        episode = self.source[min(wanted, last)]._replace(valid=np.bool_(wanted <= last))
        self.pulse.beat()
        return episode


def _stack(episodes: Sequence[Episode]) -> Episode:
    return Episode(*map(np.stack, zip(*episodes, strict=True)))
