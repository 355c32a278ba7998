"""Handling of SIGTERM, SIGHUP and Ctrl-C: a training saves before it ends, and others tidy up."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

ENDING = tuple(x for x in signal.Signals if x.name in ("SIGTERM", "SIGHUP", "SIGINT"))
"""The signals that end a command: SIGHUP is of a terminal that is closed, and not of Windows."""

GRACE = 2.0
"""Seconds after a first Ctrl-C in which others are not heard: many people press it twice."""

_AGAIN = 0.1  # seconds until a signal whose exception may have been dropped is sent again
_TOLD = b"\nstopping when this is saved; Ctrl-C once more stops at once, without saving\n"


class Stopped(Exception):
    """A signal ended the run early; its state at step `at` is saved."""

    def __init__(self, signum: int, at: int):
        super().__init__(f"stopped at step {at}; run the same command again to resume")
        self.signum = signum


class Interrupted(Exception):
    """A signal was received while a training waited for a validation or for a batch."""


class Terminated(SystemExit):
    """SIGTERM or SIGHUP was received."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum


class Signals:
    """While entered, records SIGTERM, SIGHUP and a first Ctrl-C in `received`; the run goes on.

    A second Ctrl-C, later than `GRACE`, raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._old = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._old = _handled_by(self._note)
        return self

    def check(self, done: int = 0) -> None:
        """Raises Interrupted if a signal was received; takes the argument of `on_batch`."""
        if self.received:
            raise Interrupted

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
            # Not print: it may be what the signal interrupted.
            if number == signal.SIGINT:
                with contextlib.suppress(OSError):
                    os.write(2, _TOLD)
        elif number == signal.SIGINT and time.monotonic() - self._at > GRACE:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        _restore(self._old)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP raise Terminated and Ctrl-C KeyboardInterrupt.

    Another within `GRACE` is not heard, so that unfinished files can be cleared away. An exception
    may be dropped where it is raised, in a destructor or in JAX's part of a garbage collection, so
    each signal is sent again until one is on its way, or until a `Signals` has recorded it.
    """
    at, entered = -GRACE, True

    def leave(number: int, frame: types.FrameType | None) -> None:
        nonlocal at
        if _leaving() and time.monotonic() - at <= GRACE:
            return
        # Not a Timer: it takes a lock, which the signal may have found taken.
        _thread.start_new_thread(send_again, (number,))
        if _importing(frame):
            return
        at = time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def send_again(number: int) -> None:
        time.sleep(_AGAIN)
        if entered:
            os.kill(os.getpid(), number)

    def tell(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, Terminated | KeyboardInterrupt):
            old_hook(dropped)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old_hook, sys.unraisablehook = sys.unraisablehook, tell
    old = _handled_by(leave)
    try:
        yield
    finally:
        entered = False
        sys.unraisablehook = old_hook
        _restore(old)


def _handled_by(handler: Callable[[int, types.FrameType | None], None]) -> dict[Any, Any]:
    """Gives the signals that end a command a handler; returns those that they had."""
    old = {}
    for number in ENDING:
        now = signal.getsignal(number)
        if number.name != "SIGHUP" or now != signal.SIG_IGN:  # as it is under `nohup`
            old[number] = now
            signal.signal(number, handler)
    return old


def _restore(handlers: dict[Any, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _leaving() -> bool:
    """Whether an exception that `heard` raised has arrived: what it interrupted is cleared away."""
    error = sys.exception()
    while error and not isinstance(error, Terminated | KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _importing(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported: JAX's extension aborts at what is raised meanwhile."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
