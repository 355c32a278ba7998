"""Handling of SIGTERM and Ctrl-C, so that a training saves before it ends and others tidy up."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator

GRACE = 2.0
"""Seconds after a first Ctrl-C in which others are not heard: many people press it twice."""

_TOLD = b"\nstopping when this is saved; Ctrl-C once more stops at once, without saving\n"


class Stopped(Exception):
    """A signal ended the run early; its state at step `at` is saved."""

    def __init__(self, signum: int, at: int):
        super().__init__(f"stopped at step {at}; run the same command again to resume")
        self.signum = signum


class Interrupted(Exception):
    """A signal was received while a training waited for a validation or for a batch."""


class Terminated(SystemExit):
    """SIGTERM was received."""


class Signals:
    """While entered, records SIGTERM and a first Ctrl-C in `received` instead of ending the run.

    A second Ctrl-C, later than `GRACE`, raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._old = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
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
        for number, handler in self._old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """While entered, SIGTERM raises Terminated and Ctrl-C KeyboardInterrupt.

    Another within `GRACE` is not heard, so that unfinished files can be cleared away.
    """
    at = -GRACE

    def leave(number: int, frame: types.FrameType | None) -> None:
        nonlocal at
        if (now := time.monotonic()) - at <= GRACE:
            return
        if _importing(frame):
            _send_later(number)
            return
        at = now
        raise Terminated(128 + number) if number == signal.SIGTERM else KeyboardInterrupt

    def send_again(lost: "sys.UnraisableHookArgs") -> None:
        # Python drops what is raised in a destructor, JAX's at each garbage collection among them.
        nonlocal at
        numbers = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
        if (number := numbers.get(lost.exc_type)) is None:
            old_hook(lost)
            return
        at = -GRACE
        _send_later(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old_hook, sys.unraisablehook = sys.unraisablehook, send_again
    old = {x: signal.signal(x, leave) for x in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        sys.unraisablehook = old_hook
        for number, handler in old.items():
            signal.signal(number, handler)


def _importing(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported: JAX's extension aborts at what is raised meanwhile."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _send_later(number: int) -> None:
    """Sends this process a signal again, in a moment."""
    later = threading.Timer(0.05, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()
