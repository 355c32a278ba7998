"""Handling of SIGTERM and Ctrl-C, so that a training saves before it ends."""

import signal
import threading
import types


class Stopped(Exception):
    """A signal ended the run early; its state at step `at` is saved."""

    def __init__(self, signum: int, at: int):
        super().__init__(f"stopped at step {at}; run the same command again to resume")
        self.signum = signum


class Interrupted(Exception):
    """A signal was received during a validation."""


class Signals:
    """While entered, records SIGTERM and a first Ctrl-C in `received` instead of ending the run."""

    def __init__(self) -> None:
        self.received = 0
        self._old = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def check(self, done: int) -> None:
        """Raises Interrupted if a signal was received; takes the argument of `on_batch`."""
        if self.received:
            raise Interrupted

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
