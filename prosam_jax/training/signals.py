"""SIGTERM and Ctrl-C in a training that saves before it ends."""

import signal
import threading
import types


class Stopped(Exception):
    """A signal ended the run early; everything done so far is saved."""

    def __init__(self, signum: int, at: int):
        super().__init__(f"stopped at step {at}; the same command goes on from there")
        self.signum = signum


class Interrupted(Exception):
    """A signal came while a validation was under way."""


class Signals:
    """While entered, SIGTERM and a first Ctrl-C are noted in `received` and do not end the run."""

    def __init__(self) -> None:
        self.received = 0
        self._old = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def check(self, done: int) -> None:
        """Raises Interrupted if a signal came."""
        if self.received:
            raise Interrupted

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
