"""The demo's table of scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import rich.table

from prosam_jax import console
from prosam_jax.comparison.methods import OF_THE_METHOD


class Row(NamedTuple):
    """A line of a table; scores in percent.

    Attributes:
        name: Title of a method, or name of a control.
        method: Title of the method that the row belongs to, "" if it belongs to all.
        miou: Mean IoU over the classes.
        fb_iou: Mean IoU of foreground and background.
    """

    name: str
    method: str
    miou: float
    fb_iou: float


def rows(held: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of each method with its own controls, then of the controls common to all methods.

    Args:
        held: Contents of `results.json`, by the method's title.
    """
    lines, common = [], {}
    for title, found in held.items():
        lines.append(Row(title, title, found["miou"], found["fb_iou"]))
        common = found["controls"]
        lines += [_row(name, title, common[name]) for name in OF_THE_METHOD if name in common]
    return lines + [_row(name, "", x) for name, x in common.items() if name not in OF_THE_METHOD]


def _row(name: str, method: str, scores: Mapping[str, float]) -> Row:
    return Row(name, method, scores["miou"], scores["fb_iou"])


def print_table(lines: Sequence[Row], title: str) -> None:
    """Prints the rows, with a section for each method."""
    table = rich.table.Table(title=title)
    table.add_column("")
    table.add_column("mIoU %", justify="right")
    table.add_column("FB-IoU %", justify="right")
    method = lines[0].method
    for line in lines:
        if line.method != method:
            table.add_section()
            method = line.method
        name = line.name if line.name == line.method else f"  {line.name}"
        style = "bold" if line.name == line.method else None
        table.add_row(name, f"{line.miou:.2f}", f"{line.fb_iou:.2f}", style=style)
    console.Console().print(table)
