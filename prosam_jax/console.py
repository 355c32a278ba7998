"""What commands show while they work: bars and lines on stderr."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import rich.console
import rich.progress
import rich.table

_T = TypeVar("_T")


def stderr() -> rich.console.Console:
    """Where bars and notes go, so that stdout has results alone."""
    return rich.console.Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def note(line: str) -> None:
    """Prints a line on stderr."""
    stderr().print(line)


def track(items: Iterable[_T], total: int, what: str) -> Iterable[_T]:
    """The items, with a progress bar where there is a terminal to show it."""
    console = stderr()
    return rich.progress.track(
        items, what, total=total, console=console, disable=not console.is_terminal
    )


@contextmanager
def byte_bar(what: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes where there is a terminal to show it; call what it gives with those added."""
    console = stderr()
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda added: bar.advance(task, added)


def training_bars(
    console: rich.console.Console, *more: rich.progress.ProgressColumn | str
) -> rich.progress.Progress:
    """Bars of trainings, a task with a "text" for each; none where there is no terminal.

    Args:
        console: Where they are shown.
        more: Further columns.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[text]}"),
        rich.progress.TimeElapsedColumn(),
        *more,
        console=console,
        disable=not console.is_terminal,
    )


class Progress:
    """A bar with loss, mIoU, episodes/s and time left; plain lines where there is no terminal."""

    def __init__(self, total: int, start: int, batch_size: int):
        self._console = stderr()
        self._bar = training_bars(
            self._console,
            rich.progress.TextColumn("left"),
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
        """Shows the newest numbers: "loss", "miou" and "episodes_per_s"."""
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
    """A bar that counts to `total`; call what it gives with the number done.

    Where there is no terminal it is a line a minute.
    """
    console = stderr()
    if not console.is_terminal:
        yield _minutely(name, total)
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)


def _minutely(name: str, total: int) -> Callable[[int], None]:
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 60:
            told = time.monotonic()
            note(f"{name}: {done:,} of {total:,}")

    return tell


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
