"""Batches of episodes in the order of training steps, read ahead by threads or processes."""

import dataclasses
import os
import signal
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags

from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.errors import UserError
from prosam_jax.types import Episode


def make_loader(
    source: EpisodeSource,
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> grain.DatasetIterator[Episode]:
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

    Raises:
        UserError: `batch_size` is not a multiple of `hosts`, or the source has too few batches.
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
    part = _HostPart(source, batch_size, start, stop, host, hosts)
    dataset = grain.MapDataset.source(part).batch(batch_size // hosts, batch_fn=_stack)
    # More threads than cores slow worker processes down, because they compete for the GIL.
    threads = min(4, max(1, (os.cpu_count() or 1) // workers)) if workers else 4
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return iter(dataset.to_iter_dataset(reading).mp_prefetch(processes, _ignore_signals))


def _ignore_signals(worker: int, workers: int) -> None:
    """Makes a worker ignore signals, so that the main process decides when its workers end.

    A terminal sends Ctrl-C to all of its processes, and a scheduler SIGTERM to all of a job.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class _HostPart:
    """The episodes of one host, in the order in which it reads them."""

    source: EpisodeSource
    batch_size: int
    start: int
    stop: int
    host: int
    hosts: int

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.batch_size // self.hosts)

    def __getitem__(self, index: int) -> Episode:
        share = self.batch_size // self.hosts
        step, offset = divmod(index, share)
        wanted = (self.start + step) * self.batch_size + self.host * share + offset
        last = len(self.source) - 1
        return self.source[min(wanted, last)]._replace(valid=np.bool_(wanted <= last))


def _stack(episodes: Sequence[Episode]) -> Episode:
    return Episode(*map(np.stack, zip(*episodes, strict=True)))
