"""Processes that work for the main one: it decides when they end, and they end with it.

A terminal sends Ctrl-C to all of them.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


def begin_worker() -> None:
    """Prepares a process that was started just now."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """While entered, Ctrl-C waits, and never comes to a process that is started meanwhile.

    Otherwise it would end one that has not come to `begin_worker` yet, with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # At once, because nobody is left to take what it has done.
    os._exit(1)
