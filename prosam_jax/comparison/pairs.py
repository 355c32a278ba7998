"""Rows of a table that belong together: those that are compared, and their classes."""

import pathlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from prosam_jax.comparison import reproduce
from prosam_jax.comparison.paper import Row
from prosam_jax.comparison.reproduce import Line, Made
from prosam_jax.evaluation import results


class Group(NamedTuple):
    """Rows that belong together.

    Attributes:
        rows: The rows.
        shared: The labels that all of them have, as text.
        names: What tells each from the others.
    """

    rows: tuple[Row, ...]
    shared: str
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """The rows in words, the first over the second."""
        return ": ".join(x for x in (self.shared, " over ".join(self.names)) if x)


class Point(NamedTuple):
    """The IoU of a class in two rows, in percent."""

    name: str
    row: float
    other: float


def compared(made: Made, row: Row) -> Group:
    """A row, and the one that it is compared with if there is one."""
    below = () if row.below is None else (made.by_label[row.below],)
    return _group([(row, *below)])


def pairs(made: Made) -> list[Group]:
    """All two rows that are compared; once if several show the same episodes of the same runs."""
    several = [(row, made.by_label[row.below]) for row in made.rows if row.below is not None]
    return _groups(several, lambda row: (row.scored, row.scoring, *_folders(made, row)))


def families(made: Made) -> list[Group]:
    """All rows, in groups of those that are compared, also indirectly; once for the same runs."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in made.rows:
        root = row
        while root.below is not None:
            root = made.by_label[root.below]
        found.setdefault(root.labels, []).append(row)
    return _groups([tuple(x) for x in found.values()], lambda row: _folders(made, row))


def _folders(made: Made, row: Row) -> tuple[pathlib.Path, ...]:
    return tuple(run.workdir for fold in made.folds for run in made.runs[row.labels, fold])


def _groups(several: Sequence[tuple[Row, ...]], key: Callable[[Row], Hashable]) -> list[Group]:
    """A group for all rows that have the same keys."""
    found: dict[tuple[Hashable, ...], list[tuple[Row, ...]]] = {}
    for rows in several:
        found.setdefault(tuple(map(key, rows)), []).append(rows)
    return [_group(x) for x in found.values()]


def _group(several: Sequence[tuple[Row, ...]]) -> Group:
    """A group of the first rows; labels in which the others differ from them are left out."""
    rows, shared = several[0], []
    names: list[list[str]] = [[] for _ in rows]
    for i, label in enumerate(rows[0].labels):
        if len({one[0].labels[i] for one in several}) > 1:
            continue
        if all(row.labels[i] == label for row in rows):
            shared.append(label)
        else:
            for name, row in zip(names, rows, strict=True):
                name.append(row.labels[i])
    if len(rows) == 1:
        names = [[shared.pop()]]
    return Group(rows, ", ".join(shared), tuple(", ".join(x) for x in names))


def pictured(made: Made) -> Group:
    """The two rows whose episodes are worth a look.

    The last two that are compared and of which each was trained in its own way. If one model is
    used in several ways, the row that others are compared with, and the lowest of those. If nothing
    is compared, the last row alone.
    """
    if not (found := pairs(made)):
        return compared(made, made.rows[-1])
    for group in reversed(found):
        if len({(row.method, row.variant) for row in group.rows}) > 1:
            return group
    lowest = min(reproduce.differences(made), key=_first)
    below = made.by_label[lowest.row.below or ()]
    return _group([(below, lowest.row)])


def _first(line: Line) -> float:
    return next(iter(line.values.values())).ours


def classes(made: Made, group: Group) -> list[Point]:
    """The IoU of each class of each fold in both rows of a pair, mean over seeds and lists.

    Only of classes that have an episode.
    """
    points = []
    for fold in made.folds:
        (names, one), (_, other) = (_classes(made, row, fold) for row in group.rows)
        points += [Point(name, 100 * one[c], 100 * other[c]) for c, name in names.items()]
    return points


def _classes(made: Made, row: Row, fold: int) -> tuple[dict[int, str], dict[int, float]]:
    """Name and IoU of each class."""
    runs = made.runs[row.labels, fold]
    lists = [x for run in runs for x in reproduce.counted(run, reproduce.scoring_of(run, row))]
    per_class = results.scores(lists, row.scored, absent=False).per_class
    return {c: name for c, name in lists[0].classes.items() if c in per_class}, per_class
