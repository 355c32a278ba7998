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

    A batch is a function of `source`, `batch_size` and its step alone: whatever the number of
    workers, and wherever a run was resumed. A host reads its own part of each batch, and the
    parts in order of the hosts are the batch. The last batch is filled up with the last episode,
    marked not `valid`.

    Args:
        source: The episodes.
        batch_size: Episodes in a batch, over all hosts.
        start: First step.
        stop: Step to stop before; None for the last batch of the source.
        workers: Processes that read; 0 reads in threads of this one. Started processes import
            the script anew, which therefore needs its `if __name__ == "__main__"`.
        host: Number of this host.
        hosts: Hosts that share the batches.

    Raises:
        UserError: The hosts cannot share a batch evenly, or the source has not so many batches.
    """
    if batch_size % hosts:
        raise UserError(
            f"batch_size={batch_size} does not divide evenly among {hosts} hosts; "
            f"choose a multiple of {hosts}"
        )
    steps = -(-len(source) // batch_size)
    stop = steps if stop is None else stop
    if not 0 <= start <= stop <= steps:
        raise UserError(f"steps {start} to {stop} do not lie in the {steps} of the source")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its own flags, and not every caller is an app
    part = _HostPart(source, batch_size, start, stop, host, hosts)
    dataset = grain.MapDataset.source(part).batch(batch_size // hosts, batch_fn=_stack)
    # More threads than cores slow worker processes down: each holds its interpreter's lock in turn.
    threads = min(4, max(1, (os.cpu_count() or 1) // workers)) if workers else 4
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return iter(dataset.to_iter_dataset(reading).mp_prefetch(processes, _ignore_signals))


def _ignore_signals(worker: int, workers: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a scheduler's SIGTERM every one of a job.

    The main process decides when its workers end.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclasses.dataclass(frozen=True)
class _HostPart:
    """The episodes that one host reads, in the order in which it reads them."""

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
