"""Scores and the frozen weights they depend on, as text for a terminal."""

import rich.table

from prosam_jax.config import RANDOM, Config
from prosam_jax.console import Console, clock
from prosam_jax.errors import printable
from prosam_jax.evaluation import intervals
from prosam_jax.evaluation.results import Result


def frozen_line(cfg: Config) -> str:
    """The frozen weights in one line, with a clear note if they are random."""
    parts = {
        f"SAM {cfg.sam.model}": cfg.sam.weight_file(),
        f"backbone {cfg.backbone.name}": cfg.backbone.weight_file(),
    }
    return "; ".join(
        f"{name}: RANDOM weights, as asked for" if file == RANDOM else f"{name}: {file}"
        for name, file in parts.items()
    )


def summary(result: Result) -> str:
    """The scores in one line."""
    scores, n = result.scores, len(result.scores.per_class)
    return (
        f"mIoU {100 * scores.miou:.2f}, FB-IoU {100 * scores.fb_iou:.2f} on {result.episodes} "
        f"episodes of {n} class{'es' * (n > 1)}, {clock(result.seconds)}"
    )


def print_scores(result: Result) -> None:
    """Prints mIoU, FB-IoU and the IoU of each class; classes without an episode do not count."""
    table = rich.table.Table(title=f"{result.episodes} episodes of novel classes")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    interval = intervals.interval(result.draws().miou)
    for c, name in result.classes.items():
        iou = result.scores.per_class.get(c)
        table.add_row(printable(name), "no episode" if iou is None else f"{100 * iou:.2f}")
    table.add_section()
    n, of = len(result.scores.per_class), len(result.classes)
    over = "" if n == of else f" (over {n} of {of} classes)"
    table.add_row(f"mIoU{over}", f"{100 * result.scores.miou:.2f}")
    low, high = (100 * x for x in interval)
    table.add_row("  95 % interval over pictures", f"{low:.2f} to {high:.2f}")
    table.add_row("FB-IoU", f"{100 * result.scores.fb_iou:.2f}")
    if result.others:
        table.add_section()
    for name in result.others:
        table.add_row(f"mIoU of {name}", f"{100 * result.scores_of(name).miou:.2f}")
    Console().print(table)
    if result.empty_annotations:
        print(
            f"{result.empty_annotations} of {result.references} references have no annotated cell "
            "left at the size of the features (data.downsample=coverage keeps every annotation)"
        )
