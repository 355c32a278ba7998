"""Progress bars and notes, which commands show on stderr, and tables.

Names of classes and files may be anything, so text is never markup here.
"""

import errno
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import rich.console
import rich.progress
import rich.text

from prosam_jax.errors import printable

_T = TypeVar("_T")
_column = functools.partial(rich.progress.TextColumn, markup=False)


class Console(rich.console.Console):
    """A console that shows text as it is, in tables, too: "[red]", ":cat:" and a class "[/b]"."""

    def render_str(self, text: str, **kwargs: Any) -> rich.text.Text:
        """The text with its style alone; what would steer the terminal is escaped."""
        shown = {x: kwargs[x] for x in ("style", "justify", "overflow") if x in kwargs}
        return rich.text.Text(printable(text, keep="\n"), **shown)


class _Stderr(Console):
    """Shows nothing more when its reader has gone: a `tee` that Ctrl-C ended, a closed terminal."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # of a terminal
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())


def stderr() -> Console:
    """The console for bars and notes, so that stdout has only results."""
    return _Stderr(stderr=True, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """Prints a line on stderr."""
    stderr().print(line)


def track(items: Iterable[_T], total: int, what: str) -> Iterable[_T]:
    """Yields the items, with a progress bar if stderr is a terminal."""
    console = stderr()
    return rich.progress.track(
        items, what, total=total, console=console, disable=not console.is_terminal
    )


@contextmanager
def byte_bar(what: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes; call the result with the number of new bytes.

    Without a terminal it prints a line every minute.
    """
    console = stderr()
    with rich.progress.Progress(
        _column("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total, completed=done)
        tell = _minutely(f"{what}, bytes", total)

        def advance(added: int) -> None:
            bar.advance(task, added)
            if not console.is_terminal:
                tell(int(bar.tasks[0].completed))

        yield advance


def training_bars(
    console: rich.console.Console, *more: rich.progress.ProgressColumn | str
) -> rich.progress.Progress:
    """Bars for training runs, one task each, with a field "text"; hidden without a terminal.

    Args:
        console: Where the bars are shown.
        more: Additional columns.
    """
    return rich.progress.Progress(
        _column("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        _column("{task.fields[text]}"),
        rich.progress.TimeElapsedColumn(),
        *more,
        console=console,
        disable=not console.is_terminal,
    )


class Progress:
    """A bar with loss, mIoU, episodes/s and time left; plain lines without a terminal."""

    def __init__(self, total: int, start: int, batch_size: int):
        self._console = stderr()
        self._bar = training_bars(
            self._console,
            _column("left"),
            rich.progress.TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("training", total=total, completed=start, text="")
        self._total, self._batch_size = total, batch_size

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the latest values of "loss", "miou" and "episodes_per_s"."""
        rate = values["episodes_per_s"]
        text = f"loss {values['loss']:.4f}  mIoU {100 * values['miou']:.1f}  {rate:.2f} episodes/s"
        self._bar.update(self._task, text=text)
        if not self._console.is_terminal:
            left = clock((self._total - step) * self._batch_size / rate)
            self.print(f"step {step}/{self._total}  {text}  {left} left")

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line)


@contextmanager
def counting(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts to `total`; call the result with the number done so far.

    Without a terminal it prints a line every minute.
    """
    console = stderr()
    if not console.is_terminal:
        yield _minutely(name, total)
        return
    columns = (
        _column("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        _column("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)


def _minutely(name: str, total: int | None) -> Callable[[int], None]:
    told = time.monotonic()
    of = "" if total is None else f" of {total:,}"

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 60:
            told = time.monotonic()
            note(f"{name}: {done:,}{of}")

    return tell


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
